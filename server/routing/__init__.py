"""Several servers of one model: which are there, which work, and where a search's requests go."""
