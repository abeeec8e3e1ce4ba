"""Convolutions over pictures, with parameters per modality."""
