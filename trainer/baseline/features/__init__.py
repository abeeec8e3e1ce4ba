"""Records as rows of numbers: statistics of every modality."""
