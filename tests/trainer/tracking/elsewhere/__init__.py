"""Files of other trackers, read back by their own libraries."""
