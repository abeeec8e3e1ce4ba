"""The page of a server: what the model takes, a record to fill in, and what the answer rests on."""
