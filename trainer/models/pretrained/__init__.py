"""Encoders that somebody else has trained: loaded in one place, for the fusion model and for towers."""
