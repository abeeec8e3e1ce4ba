"""Several runs as one model: the weighted mean of what they say, as a run of its own."""
