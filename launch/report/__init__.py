"""A run, or a sweep, as one page."""
