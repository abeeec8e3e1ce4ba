"""Runs compared: intervals, paired tests, a report."""
