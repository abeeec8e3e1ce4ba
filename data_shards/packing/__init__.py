"""From a source's records to shards, indices and a manifest."""
