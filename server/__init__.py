"""Ponder: an inference-time reasoning server."""

__version__ = "0.1.0"
