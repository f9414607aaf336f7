"""One small program for each peer; each runs with the Python of that peer's own virtual environment."""
