"""Cells that name or hold files of recordings and films."""
