"""The learning rate as a function of the step alone, so that nothing about it needs to be saved."""

from __future__ import annotations

import math

from trainer.config.sections import OptimConfig


def warmup_steps(config: OptimConfig, total: int) -> int:
    """Warm-up in steps: a fraction of `total` below 1, a number of steps from 1 on."""
    return round(config.warmup * total) if config.warmup < 1 else round(config.warmup)


def lr_factor(config: OptimConfig, step: int, total: int) -> float:
    """Factor on the peak learning rate for optimiser step `step` (from 0) of `total`."""
    warmup = warmup_steps(config, total)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    shape = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_lr_factor + (1 - config.min_lr_factor) * shape
