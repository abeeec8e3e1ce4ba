"""Encoders that are one modality's own."""
