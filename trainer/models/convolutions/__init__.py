"""Convolutions over packed signals and grids of pictures, with parameters per modality."""
