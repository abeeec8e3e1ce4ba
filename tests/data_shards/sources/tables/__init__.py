"""Tests of the source `tables`."""
