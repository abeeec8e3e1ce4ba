"""Packed data at rest: storage, tar members, indices, manifest, reading them back."""
