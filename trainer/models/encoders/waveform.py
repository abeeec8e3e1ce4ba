"""Regularly sampled signals -> a fixed number of tokens, one launch for all waveforms with as many channels.

A signal is cut into patches of consecutive samples, each embedded by a small network. The patches of all signals lie
back to back, so memory and time follow the samples that are there and not the length that was declared. A signal's
own patches are then shared out evenly to `tokens` stretches of the signal: each token is the mean of its stretch, or,
where there are fewer patches than tokens, the nearest patch. So a short signal has as many tokens as a long one, none
of them empty, and is as visible to attention. What the stretches no longer tell, how long the signal is, is an input
of its own. No parameter depends on a length.

Where the recipe asks for it, a signal's tokens also say what it is as a whole, by fixed kernels (`numbers.kernels`).

A signal without samples is present but empty: its tokens are their positions and the embedded length 0.

Shape legend: P pairs (sample, modality), O samples of all signals, C channels, s samples a patch, N patches of all
signals, T tokens, E (patch, token) entries, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_shards import WaveformGroup
from parallel.moe.segments import Segments
from trainer.models.encoders.layout import Encoder, GroupLayout, PresentPairs
from trainer.models.layers.grouped_linear import Blocks, GroupedLinear, GroupedMLP
from trainer.models.layers.ragged import offsets_to_ids
from trainer.models.layers.standardise import Standardiser
from trainer.models.numbers.kernels import Detail, most_moments
from trainer.models.numbers.whole_signal import WholeSignal

# Periods of the embedded length, each half of the one before, in octaves: the longest spans every length, the shortest,
# a quarter, tells lengths 3 % apart.
PERIODS, LONGEST_PERIOD = 8, 32.0
LENGTH_INPUTS = 2 * PERIODS
LENGTH_SCALE = 0.02  # of initial weights, as small as positions are


@dataclass(frozen=True)
class PatchLayout:
    """Patches of each modality of the group, how many (patch, token) entries there are, and at how many moments of a
    signal kernels look."""

    patches: Blocks
    entries: int
    moments: int


class WaveformEncoder(Encoder):
    """Packed (O, C) samples with offsets -> (P, T, D)."""

    def __init__(
        self,
        channels: int,
        standardiser: Standardiser,
        patch: int,
        tokens: int,
        dim: int,
        blocks: int,
        detail: Detail | None = None,
        standardised: bool = False,
    ) -> None:
        super().__init__()
        self.standardiser, self.patch, self.tokens = standardiser, patch, tokens
        self.network = GroupedMLP(blocks, channels * patch, 2 * dim, dim)
        self.length = GroupedLinear(blocks, LENGTH_INPUTS, dim)
        nn.init.uniform_(self.length.weight, -LENGTH_SCALE, LENGTH_SCALE)
        self.position_TD = nn.Parameter(torch.randn(tokens, dim) * 0.02)
        self.whole = None if detail is None else WholeSignal(channels, detail, standardised, dim, blocks)

    def lay_out(self, group: WaveformGroup, block_P: Tensor, blocks: int, present: PresentPairs | None) -> PatchLayout:
        """Numbers of patches, from the lengths of the signals on the CPU."""
        patches_P = -(-group.offsets.diff() // self.patch)
        patches_M = torch.zeros(blocks, dtype=torch.int64).index_add_(0, block_P, patches_P)
        moments = 0 if self.whole is None else most_moments(group.offsets, self.whole.shares.detail)
        return PatchLayout(Blocks.of(patches_M), entries_of(patches_P, self.tokens), moments)

    def forward(self, group: WaveformGroup, layout: GroupLayout) -> Tensor:
        own = layout.own
        assert isinstance(own, PatchLayout)
        length_P = group.offsets.diff()
        patches_P = -(-length_P // self.patch)
        pair_O = offsets_to_ids(group.offsets, group.values_OC.shape[0])
        value_OC = self.standardiser(group.values_OC, layout.block_P[pair_O])
        patch_NX = self._patches(value_OC, pair_O, group.offsets, patches_P, own.patches.rows)
        embedded_ND = self.network(patch_NX, own.patches)
        token_PTD = stretch_means(embedded_ND, patches_P, self.tokens, own.entries)
        token_PTD = token_PTD + self.position_TD + self.length(length_features(length_P), layout.pairs)[:, None]
        if self.whole is None:
            return token_PTD
        by_signal = Segments.of(pair_O, length_P.shape[0], ascending=True)
        return token_PTD + self.whole(value_OC, by_signal, group.offsets, own.moments, layout.pairs)[:, None]

    def _patches(self, value_OC: Tensor, pair_O: Tensor, offsets: Tensor, patches_P: Tensor, patches: int) -> Tensor:
        """(N, s * C) standardised samples; what a signal's last patch lacks is 0, its mean."""
        samples, channels = value_OC.shape
        # Samples keep their order; each signal moves to the start of its first patch.
        moved_P = (patches_P.cumsum(0) - patches_P) * self.patch - offsets[:-1]
        cell_O = torch.arange(samples, device=pair_O.device) + moved_P[pair_O]
        padded = value_OC.new_zeros(patches * self.patch, channels).index_copy(0, cell_O, value_OC)
        return padded.view(-1, self.patch * channels)


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
