"""Figures of a run, drawn without a display."""
