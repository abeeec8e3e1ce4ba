"""One run from the command line."""
