"""Two policy servers: which of them a search's requests go to, and what that costs."""
