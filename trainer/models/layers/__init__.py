"""Layers that several models share: attention, grouped and ragged operations, heads, missing modalities."""
