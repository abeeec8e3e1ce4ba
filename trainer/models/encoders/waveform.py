"""Regularly sampled signals -> a fixed number of tokens, one launch for all waveforms with as many channels.

A signal is cut into patches of consecutive samples, each embedded by a small network. The patches of all signals lie
back to back, so memory and time follow the samples that are there and not the length that was declared. A signal's
own patches are then shared out evenly to `tokens` stretches of the signal: each token is the mean of its stretch, or,
where there are fewer patches than tokens, the nearest patch. So a short signal has as many tokens as a long one, none
of them empty, and is as visible to attention. What the stretches no longer tell, how long the signal is, is an input
of its own. No parameter depends on a length.

A signal without samples is present but empty: its tokens are their positions and the embedded length 0.

Shape legend: P pairs (sample, modality), O samples of all signals, C channels, s samples a patch, N patches of all
signals, T tokens, E (patch, token) entries, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from data_shards import WaveformGroup
from trainer.models.layers.grouped_linear import GroupedLinear, GroupedMLP
from trainer.models.layers.ragged import offsets_to_ids, segment_sum
from trainer.models.layers.standardise import Standardiser

# Periods of the embedded length, in octaves: the coarsest spans every length, the finest tells lengths 3 % apart.
PERIODS = (32.0, 16.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.25)
LENGTH_INPUTS = 2 * len(PERIODS)
LENGTH_SCALE = 0.02  # of initial weights, as small as positions are


class WaveformEncoder(nn.Module):
    """Packed (O, C) samples with offsets -> (P, T, D)."""

    def __init__(
        self, channels: int, standardiser: Standardiser, patch: int, tokens: int, dim: int, blocks: int
    ) -> None:
        super().__init__()
        self.standardiser, self.patch, self.tokens = standardiser, patch, tokens
        self.network = GroupedMLP(blocks, channels * patch, 2 * dim, dim)
        self.length = GroupedLinear(blocks, LENGTH_INPUTS, dim)
        nn.init.uniform_(self.length.weight, -LENGTH_SCALE, LENGTH_SCALE)
        self.position_TD = nn.Parameter(torch.randn(tokens, dim) * 0.02)

    def forward(self, group: WaveformGroup, block_P: Tensor, counts_M: Tensor) -> Tensor:
        length_P = group.offsets.diff()
        patches_P = -(-length_P // self.patch)
        patches_M = segment_sum(patches_P, block_P, len(counts_M))
        embedded_ND = self.network(self._patches(group, block_P, patches_P), patches_M)
        token_PTD = stretch_means(embedded_ND, patches_P, self.tokens)
        return token_PTD + self.position_TD + self.length(length_features(length_P), counts_M)[:, None]

    def _patches(self, group: WaveformGroup, block_P: Tensor, patches_P: Tensor) -> Tensor:
        """(N, s * C) standardised samples; what a signal's last patch lacks is 0, its mean."""
        samples, channels = group.values_OC.shape
        pair_O = offsets_to_ids(group.offsets, samples)
        value_OC = self.standardiser(group.values_OC, block_P[pair_O])
        # Samples keep their order; each signal moves to the start of its first patch.
        moved_P = (patches_P.cumsum(0) - patches_P) * self.patch - group.offsets[:-1]
        cell_O = torch.arange(samples, device=pair_O.device) + moved_P[pair_O]
        cells = int(patches_P.sum()) * self.patch
        padded = value_OC.new_zeros(cells, channels).index_copy(0, cell_O, value_OC)
        return padded.view(-1, self.patch * channels)


def length_features(length_P: Tensor) -> Tensor:
    """(P, LENGTH_INPUTS) sines and cosines of log2(1 + samples), float32."""
    octave_P = (length_P + 1).double().log2()
    angle_PX = (octave_P[:, None] / octave_P.new_tensor(PERIODS)) * (2 * torch.pi)
    return torch.cat([angle_PX.sin(), angle_PX.cos()], dim=1).float()


def stretch_means(patch_ND: Tensor, patches_P: Tensor, tokens: int) -> Tensor:
    """(P, T, D): the means of T even stretches of each signal's own patches, zeros for a signal without any.

    `patches_P` are the patches of each signal, back to back in `patch_ND`. Of n patches, patch i goes to token
    floor(i T / n); if n < T, token t takes patch floor(t n / T). Summed in fp32 at least, in the order of time.
    """
    steps_P = torch.where(patches_P > 0, patches_P.clamp_min(tokens), 0)
    entries = int(steps_P.sum())
    pair_E = torch.repeat_interleave(steps_P, output_size=entries)
    step_E = torch.arange(entries, device=pair_E.device) - (steps_P.cumsum(0) - steps_P)[pair_E]
    patch_E = (patches_P.cumsum(0) - patches_P)[pair_E] + step_E * patches_P[pair_E] // steps_P[pair_E]
    token_E = pair_E * tokens + step_E * tokens // steps_P[pair_E]
    token_XD = _RunMeans.apply(patch_ND, patch_E, token_E, len(patches_P) * tokens)
    return token_XD.view(len(patches_P), tokens, patch_ND.shape[1])


class _RunMeans(torch.autograd.Function):
    """Means of the patches of each token, over entries that ascend in both; the derivative sums runs as well.

    Both directions add neighbours in a fixed order, where an indexed sum would add in any order and in bf16.
    """

    @staticmethod
    def forward(ctx: Any, patch_ND: Tensor, patch_E: Tensor, token_E: Tensor, tokens: int) -> Tensor:
        count_X = torch.bincount(token_E, minlength=tokens)
        ctx.save_for_backward(patch_E, token_E, count_X)
        ctx.patches, ctx.dtype = len(patch_ND), patch_ND.dtype
        exact = torch.promote_types(patch_ND.dtype, torch.float32)
        return run_sums(patch_ND[patch_E].to(exact), count_X) / count_X.clamp_min(1)[:, None]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        patch_E, token_E, count_X = ctx.saved_tensors
        share_XD = grads[0] / count_X.clamp_min(1)[:, None]
        count_N = torch.bincount(patch_E, minlength=ctx.patches)
        return run_sums(share_XD[token_E], count_N).to(ctx.dtype), None, None, None


def run_sums(x_ED: Tensor, count_X: Tensor) -> Tensor:
    """Sums of runs of so many rows, in their order; zeros for a run of none."""
    if not len(x_ED):
        return x_ED.new_zeros(len(count_X), x_ED.shape[1])
    return torch.segment_reduce(x_ED, "sum", lengths=count_X, axis=0, unsafe=True)
