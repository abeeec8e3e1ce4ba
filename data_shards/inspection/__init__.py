"""What a packed data set holds: counts, gaps, presence, leakage, samples."""
