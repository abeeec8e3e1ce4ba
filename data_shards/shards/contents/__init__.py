"""What a data set consists of: shards and their chunks, as columns."""
