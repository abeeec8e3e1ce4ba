"""Metrics of records drawn again: how sure a figure is."""
