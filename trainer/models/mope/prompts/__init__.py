"""The method of arXiv 2403.10568: prompt experts, their router, attention to them, what stays frozen."""
