"""What the cost models take for granted: padding of optimizer groups, constants that were fitted."""

from __future__ import annotations

ALIGNMENT = 2  # DeepSpeed pads a flat group to a multiple of this times the ranks that share it
RESERVE = 0.08  # share of the memory left to the driver, the allocator and fragmentation

# Grouped products reach this share of what dense ones do; products of width D reach D / (D + HALF_WIDTH) of the best
# ones; how often a kept activation passes through memory, forward and backward. Fitted to measurements of small models,
# none is a promise.
GROUPED_SHARE = 0.85
HALF_WIDTH = 128
PASSES_OF_ACTIVATIONS = 4


def padded_group(elements: int, sharers: int) -> int:
    """Elements of an optimizer group after DeepSpeed has padded it for the ranks that share it."""
    unit = ALIGNMENT * sharers
    return -(-elements // unit) * unit
