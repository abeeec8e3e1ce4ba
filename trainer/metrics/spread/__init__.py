"""Metrics of a part whose predictions stay on the ranks that made them: merged, and exact."""
