"""Policies: what the search samples from. The list of engines is `build`."""
