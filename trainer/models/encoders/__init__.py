"""Encoders by modality kind."""
