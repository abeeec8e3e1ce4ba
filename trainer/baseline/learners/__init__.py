"""What learns from rows of numbers, and how it is kept."""
