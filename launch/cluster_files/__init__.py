"""Checks of cluster files that nobody has started yet."""
