"""Evaluation on the ranks of a job."""
