"""How one job learns: models, the loop, metrics, checkpoints, tracking."""
