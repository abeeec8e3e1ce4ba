"""MIMIC-IV with its notes, X-rays and ECGs as a source."""
