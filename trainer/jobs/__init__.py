"""What a worker does: train, or evaluate."""
