"""Sizes of convolutional encoders of pictures as numbers of the recipe: strides, widths, rows, arithmetic, activations.

A network is a stem, which embeds squares of pixels, and stages behind it. Each stage but the first merges squares of
rows into one; each has residual blocks. Widths double from stage to stage up to the model's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainer.config.sections import ImageEncoderConfig

NARROWEST = 16  # channels of a stage, at least
EXPANSION = 2  # hidden width of a residual block over its own
SIDE = 3  # of the square that a residual block of a picture looks at
MOST_STAGES = 3  # of a picture


@dataclass(frozen=True)
class StageSizes:
    """Of a network: features of a patch, and of each stage its width and how many rows of the one before it merges.

    `taps` are the rows that a residual block looks at, `layers` the blocks of a stage. Merged rows of the first stage
    are 1: the stem's patches are its rows.
    """

    inputs: int
    widths: tuple[int, ...]
    merged: tuple[int, ...]
    taps: int
    layers: int

    @property
    def merged_in_all(self) -> int:
        """Rows of the first stage that one of the last stands for."""
        return math.prod(self.merged)

    def flops(self) -> float:
        """Forward, for each row of the first stage, without what leaves."""
        total, share = 2.0 * self.inputs * self.widths[0], 1.0
        for number, (width, merged) in enumerate(zip(self.widths, self.merged, strict=True)):
            share /= merged
            if number:
                total += share * 2 * merged * self.widths[number - 1] * width
            total += share * self.layers * 2 * EXPANSION * (self.taps + 1) * width * width
        return total

    def elements(self) -> float:
        """Numbers kept for the backward pass, for each row of the first stage."""
        total, share = float(self.inputs), 1.0
        for width, merged in zip(self.widths, self.merged, strict=True):
            share /= merged
            # Of a block: its input, what is looked at, both sides of GELU. Of a stage: what it gives.
            total += share * (width + self.layers * (1 + self.taps + 2 * EXPANSION) * width)
        return total


def widths_of(dim: int, stages: int) -> tuple[int, ...]:
    """Width of each stage, the last as wide as the model."""
    return tuple(min(dim, max(NARROWEST, (dim >> (stages - 1 - number)) // 8 * 8)) for number in range(stages))


def merges_of(patch: int) -> tuple[int, ...]:
    """Sides of what the stages of a picture's network merge, the stem's patch first; their product is `patch`."""
    factors, rest, factor = [], patch, 2
    while rest > 1:
        while rest % factor == 0:
            factors.append(factor)
            rest //= factor
        factor += 1
    stem = max(1, len(factors) - MOST_STAGES + 1)
    return (math.prod(factors[:stem]), *factors[stem:])


def picture_stages(config: ImageEncoderConfig, channels: int, dim: int) -> StageSizes:
    """Of pictures with as many channels."""
    sides = merges_of(config.patch)
    widths = widths_of(dim, len(sides))
    merged = (1, *(side * side for side in sides[1:]))
    return StageSizes(channels * sides[0] ** 2, widths, merged, SIDE * SIDE, config.layers)


def picture_flops(config: ImageEncoderConfig, channels: int, dim: int) -> float:
    """Forward, for each token."""
    if config.network != "convolutions":
        return 2.0 * 2 * dim * (channels * config.patch**2 + dim)
    stages = picture_stages(config, channels, dim)
    return stages.merged_in_all * stages.flops() + 2 * stages.widths[-1] * dim


def picture_elements(config: ImageEncoderConfig, channels: int, dim: int) -> float:
    """Numbers kept for the backward pass, for each token."""
    if config.network != "convolutions":
        return channels * config.patch**2 + 4.0 * dim
    stages = picture_stages(config, channels, dim)
    return stages.merged_in_all * stages.elements() + stages.widths[-1]
