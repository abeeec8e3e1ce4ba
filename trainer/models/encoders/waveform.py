"""Regularly sampled signals -> a fixed number of tokens, one launch for all waveforms with as many channels.

A signal is cut into patches of consecutive samples. Each is what its samples are (`raw`), or the power in bands of
frequency around it (`logmel`), and is embedded by itself (`patches`) or by stages of residual convolutions that merge
neighbours (`convolutions`). The patches of all signals lie back to back, so memory and time follow the samples that
are there and not the length that was declared. The rows that a signal then has are shared out evenly to `tokens`
stretches of it: each token is the mean of its stretch, or, where there are fewer rows than tokens, the nearest one. So
a short signal has as many tokens as a long one, none of them empty, and is as visible to attention. What the stretches
no longer tell, how long the signal is, is an input of its own. No parameter depends on a length.

A signal without samples is present but empty: its tokens are their positions and the embedded length 0.

Shape legend: P pairs (sample, modality), O samples of all signals, C channels, s samples a patch, N patches of all
signals, R rows of all signals behind the last stage, T tokens, E (row, token) entries, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_shards import WaveformGroup
from parallel.moe.segments import Segments
from trainer.config.sections import WaveformEncoderConfig
from trainer.models.convolutions.signals import SignalLayout, SignalRows, own_rows
from trainer.models.convolutions.sizes import SignalSizes
from trainer.models.convolutions.spectrum import LogSpectrum
from trainer.models.convolutions.stages import Stages
from trainer.models.encoders.layout import Encoder, GroupLayout, PresentPairs
from trainer.models.layers.grouped_linear import GroupedLinear, GroupedMLP
from trainer.models.layers.ragged import offsets_to_ids, pick_rows
from trainer.models.layers.standardise import Standardiser

# Periods of the embedded length, each half of the one before, in octaves: the longest spans every length, the shortest,
# a quarter, tells lengths 3 % apart.
PERIODS, LONGEST_PERIOD = 8, 32.0
LENGTH_INPUTS = 2 * PERIODS
LENGTH_SCALE = 0.02  # of initial weights, as small as positions are


@dataclass(frozen=True)
class WaveformLayout:
    """Where patches lie, and how many (row, token) entries there are."""

    signals: SignalLayout
    entries: int


class WaveformEncoder(Encoder):
    """Packed (O, C) samples with offsets -> (P, T, D).

    Args:
        rates: samples per second of each modality of the group, None if it declares none.
    """

    def __init__(
        self,
        channels: int,
        standardiser: Standardiser,
        config: WaveformEncoderConfig,
        dim: int,
        rates: Sequence[float | None],
    ) -> None:
        super().__init__()
        blocks = len(rates)
        self.standardiser, self.patch, self.tokens = standardiser, config.patch, config.tokens
        self.sizes = SignalSizes.of(config, channels, dim)
        inputs = channels * config.patch
        self.spectrum: LogSpectrum | None = None
        if config.front == "logmel":
            inputs = channels * config.bands
            self.spectrum = LogSpectrum(config.patch, config.window, config.bands, channels, rates)
        self.network: GroupedMLP | Stages
        if self.sizes.stages is None:
            self.network = GroupedMLP(blocks, inputs, 2 * dim, dim)
        else:
            self.network = Stages(blocks, self.sizes.stages)
            self.output = GroupedLinear(blocks, self.sizes.stages.widths[-1], dim)
        self.length = GroupedLinear(blocks, LENGTH_INPUTS, dim)
        nn.init.uniform_(self.length.weight, -LENGTH_SCALE, LENGTH_SCALE)
        self.position_TD = nn.Parameter(torch.randn(self.tokens, dim) * 0.02)

    def lay_out(
        self, group: WaveformGroup, block_P: Tensor, blocks: int, present: PresentPairs | None
    ) -> WaveformLayout:
        """Numbers of rows, from the lengths of the signals on the CPU."""
        length_P = group.offsets.diff()
        signals = SignalLayout.of(length_P, block_P, blocks, self.sizes)
        return WaveformLayout(signals, entries_of(own_rows(length_P, self.sizes), self.tokens))

    def forward(self, group: WaveformGroup, layout: GroupLayout) -> Tensor:
        own = layout.own
        assert isinstance(own, WaveformLayout)
        length_P = group.offsets.diff()
        rows = SignalRows.of(length_P, own.signals, self.sizes)
        pair_O = offsets_to_ids(group.offsets, len(group.values_OC))
        value_OC = self.standardiser(group.values_OC, layout.block_P[pair_O])
        x_NX, blocks = rows.place(value_OC, pair_O, group.offsets), own.signals.levels[0]
        if self.spectrum is not None:
            x_NX = self.spectrum(x_NX, blocks.segments.segment_N)
        if isinstance(self.network, Stages):
            row_RD = self._own(self.network(x_NX, rows.levels()), rows)
            mean_PTD = stretch_means(row_RD, rows.own_P, self.tokens, own.entries)
            token_PTD = self.output(mean_PTD.flatten(0, 1), layout.tokens).unflatten(0, (-1, self.tokens))
        else:
            row_RD = self._own(self.network(x_NX, blocks), rows)
            token_PTD = stretch_means(row_RD, rows.own_P, self.tokens, own.entries)
        return token_PTD + self.position_TD + self.length(length_features(length_P), layout.pairs)[:, None]

    def _own(self, row_ND: Tensor, rows: SignalRows) -> Tensor:
        """The rows that are of signals."""
        return pick_rows(row_ND, rows.cells()) if self.sizes.gap else row_ND


def length_features(length_P: Tensor) -> Tensor:
    """(P, LENGTH_INPUTS) sines and cosines of log2(1 + samples), float32."""
    octave_P = (length_P + 1).double().log2()
    period_X = LONGEST_PERIOD / torch.arange(PERIODS, device=length_P.device).exp2()
    angle_PX = (octave_P[:, None] / period_X) * (2 * torch.pi)
    return torch.cat([angle_PX.sin(), angle_PX.cos()], dim=1).float()


def _steps(patches_P: Tensor, tokens: int) -> Tensor:
    """(patch, token) entries of each signal."""
    return torch.where(patches_P > 0, patches_P.clamp_min(tokens), 0)


def entries_of(patches_P: Tensor, tokens: int) -> int:
    """Number E of (patch, token) entries of all signals. The host waits if the patches are on a device."""
    return int(_steps(patches_P, tokens).sum())


def stretch_means(patch_ND: Tensor, patches_P: Tensor, tokens: int, entries: int) -> Tensor:
    """(P, T, D): the means of T even stretches of each signal's own patches, zeros for a signal without any.

    `patches_P` are the patches of each signal, back to back in `patch_ND`. Of n patches, patch i goes to token
    floor(i T / n); if n < T, token t takes patch floor(t n / T). Summed in fp32 at least, in the order of time, and so
    are gradients: entries ascend by patch and by token. `entries` is `entries_of` the patches.
    """
    steps_P = _steps(patches_P, tokens)
    pair_E = torch.repeat_interleave(steps_P, output_size=entries)
    step_E = torch.arange(entries, device=pair_E.device) - (steps_P.cumsum(0) - steps_P)[pair_E]
    patch_E = (patches_P.cumsum(0) - patches_P)[pair_E] + step_E * patches_P[pair_E] // steps_P[pair_E]
    token_E = pair_E * tokens + step_E * tokens // steps_P[pair_E]
    of_patch = Segments.of(patch_E, len(patch_ND), ascending=True)
    of_token = Segments.of(token_E, len(patches_P) * tokens, ascending=True)
    sum_XD = of_token.sum(of_patch.spread(patch_ND))
    token_XD = sum_XD / of_token.counts.clamp_min(1)[:, None]
    return token_XD.view(len(patches_P), tokens, patch_ND.shape[1])
