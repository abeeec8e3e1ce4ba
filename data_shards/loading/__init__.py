"""From packed shards to batches on a rank: order, mixtures, packed batches, loader."""
