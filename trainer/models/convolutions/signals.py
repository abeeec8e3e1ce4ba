"""Packed signals as rows of patches, back to back, with so much room between them that none sees another.

Each signal begins at a row of the coarsest stage and has `gap` such rows of zeros behind it. So it lies alike at every
stage, merging is a change of shape, and neighbours are shifts of all rows at once. What the gaps cost follows the
number of signals, not the longest one.

Shape legend: P signals, O samples of all signals, C channels, N rows, s samples a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.models.convolutions.sizes import SignalSizes
from trainer.models.convolutions.stages import Level
from trainer.models.layers.grouped_linear import Blocks


@dataclass(frozen=True)
class SignalLevel(Level):
    """Rows along time."""

    def neighbours(self, x_NW: Tensor, taps: int) -> Tensor:
        return beside(x_NW, taps, taps // 2)

    def merged(self, x_NW: Tensor, number: int) -> Tensor:
        return x_NW.view(-1, number * x_NW.shape[1])


def beside(x_NW: Tensor, taps: int, before: int) -> Tensor:
    """(N, taps * W): row n - before, ..., n - before + taps - 1 of each row n; zeros beyond the ends."""
    if taps == 1:
        return x_NW
    rows = len(x_NW)
    wide_NW = torch.nn.functional.pad(x_NW, (0, 0, before, taps - 1 - before))
    return torch.cat([wide_NW[shift : shift + rows] for shift in range(taps)], dim=1)


@dataclass(frozen=True)
class SignalLayout:
    """Rows of each block at each stage, and how many rows of the last one are of signals."""

    levels: tuple[Blocks, ...]
    rows: int

    @staticmethod
    def of(length_P: Tensor, block_P: Tensor, blocks: int, sizes: SignalSizes) -> SignalLayout:
        """From the lengths of the signals in samples, on the CPU."""
        own_P = own_rows(length_P, sizes)
        cells_M = torch.zeros(blocks, dtype=torch.int64).index_add_(0, block_P, own_P + sizes.gap)
        each = [sizes.stride]
        for number in sizes.stages.merged[1:] if sizes.stages else ():
            each.append(each[-1] // number)
        last = Blocks.of(cells_M)
        return SignalLayout(tuple(last.times(number) for number in each), int(own_P.sum()))


def own_rows(length_P: Tensor, sizes: SignalSizes) -> Tensor:
    """(P,) rows of the last stage that signals of so many samples fill."""
    return -(-length_P // (sizes.patch * sizes.stride))


@dataclass(frozen=True)
class SignalRows:
    """Where signals of `length_P` samples lie: `own_P` rows of the last stage from `start_P` on. Nothing waits."""

    sizes: SignalSizes
    layout: SignalLayout
    length_P: Tensor
    start_P: Tensor
    own_P: Tensor

    @staticmethod
    def of(length_P: Tensor, layout: SignalLayout, sizes: SignalSizes) -> SignalRows:
        """From the lengths of the signals in samples."""
        own_P = own_rows(length_P, sizes)
        cells_P = own_P + sizes.gap
        return SignalRows(sizes, layout, length_P, cells_P.cumsum(0) - cells_P, own_P)

    def place(self, value_OC: Tensor, pair_O: Tensor, offsets: Tensor) -> Tensor:
        """(N, s * C): patches of the first stage, of samples of signals `pair_O`; what a last patch lacks is 0."""
        samples, channels = value_OC.shape
        # Samples keep their order; each signal moves to the start of its first patch.
        moved_P = self.start_P * self.sizes.patch * self.sizes.stride - offsets[:-1]
        cell_O = torch.arange(samples, device=pair_O.device) + moved_P[pair_O]
        cells = self.layout.levels[0].rows * self.sizes.patch
        return value_OC.new_zeros(cells, channels).index_copy(0, cell_O, value_OC).view(-1, self.sizes.patch * channels)

    def levels(self) -> list[SignalLevel]:
        """The rows of each stage."""
        rows = self.layout.levels
        cells_P = self.own_P + self.sizes.gap
        signals = torch.arange(len(cells_P), device=cells_P.device)
        pair_N = torch.repeat_interleave(signals, cells_P, output_size=rows[-1].rows)
        levels, samples = [], self.sizes.patch
        coarse_N = torch.arange(rows[-1].rows, device=pair_N.device) - self.start_P[pair_N]
        each = self.sizes.stride
        for number, blocks in zip(self.sizes.stages.merged if self.sizes.stages else (1,), rows, strict=True):
            samples, each = samples * number, each // number
            fine = torch.arange(each, device=pair_N.device)
            place_NX = coarse_N[:, None] * each + fine
            valid_NX = place_NX * samples < self.length_P[pair_N][:, None]
            levels.append(SignalLevel(blocks, valid_NX.view(-1, 1)))
        return levels

    def cells(self) -> Tensor:
        """(R,) rows of the last stage that are of signals, one signal after the other."""
        signals = torch.arange(len(self.own_P), device=self.own_P.device)
        pair_R = torch.repeat_interleave(signals, self.own_P, output_size=self.layout.rows)
        moved_P = self.start_P - (self.own_P.cumsum(0) - self.own_P)
        return torch.arange(self.layout.rows, device=pair_R.device) + moved_P[pair_R]
