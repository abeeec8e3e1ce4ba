"""Irregular series -> tokens on a regular grid: UTDE, for all series modalities in one pass (arXiv 2402.03226, App. E).

Two views of the same events are mixed by a learned gate, per bin and per channel of the width:
*imputation*: per bin and feature, the last value seen so far, how long ago that was, and what the bin itself holds;
*mTAND*: softmax attention from the bin's time to the times at which the feature was observed (arXiv 2101.10318).
Values are scaled with the training part's statistics, so 0 stands for "average" where nothing was seen yet. Where the
recipe asks for it, one more token of a pair says what the series is as a whole (`numbers.series_statistics`), and
which shapes it is made of (`numbers.series_shapes`).

Shape legend: P pairs (sample, modality), O events, T bins, F features of the widest modality, H time heads,
K width of a head, S = P * F segments (one per pair and feature), D width, A inputs per feature.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from data_shards import Group, SeriesGroup
from parallel.moe.segments import Segments
from trainer.config.sections import SeriesEncoderConfig
from trainer.models.encoders.layout import Encoder, GroupLayout, PresentPairs
from trainer.models.layers.grouped_linear import GroupedLinear
from trainer.models.layers.ragged import offsets_to_ids
from trainer.models.layers.standardise import Constant, Standardiser
from trainer.models.layers.token_layout import EncodedGroup, grid_bins
from trainer.models.numbers.scale import NormalScores
from trainer.models.numbers.series_shapes import EvenLayout, SeriesShapes
from trainer.models.numbers.series_statistics import SeriesStatistics

# Scores of the time attention are kept within +-30, so that sums of their exponentials need no running maximum in fp32.
SCORE_LIMIT = 30.0
IMPUTATION_INPUTS = 5


class TimeEmbedding(nn.Module):
    """phi(t): one linear and several sine features of time, K wide (paper section 3, irregularity encoder).

    Frequencies start log-spaced over 1..`bins` periods per horizon, so that no two features begin alike.
    """

    def __init__(self, width: int, bins: int) -> None:
        super().__init__()
        frequency = torch.logspace(0, math.log10(bins), width)
        self.frequency = nn.Parameter(frequency * torch.pi)
        self.phase = nn.Parameter(torch.linspace(0, torch.pi, width))

    def forward(self, time: Tensor) -> Tensor:
        """(...,) times in horizons -> (..., K)."""
        angle = time[..., None] * self.frequency.float() + self.phase.float()
        return torch.cat([angle[..., :1], angle[..., 1:].sin()], dim=-1)


def time_scores(time: TimeEmbedding, query_HKK: Tensor, time_O: Tensor, bins: int) -> Tensor:
    """(O, bins * H): how much the end of each bin asks, by each head, for what was seen at each time (in horizons)."""
    now_T = torch.arange(1, bins + 1, device=time_O.device, dtype=torch.float32) / bins
    query_KX = torch.einsum("tj,hkj->kth", time(now_T), query_HKK.float()).flatten(1)
    return (time(time_O) @ query_KX) * query_HKK.shape[1] ** -0.5


def initial_time_queries(heads: int, width: int) -> nn.Parameter:
    """(H, K, K): a head's learned map from the embedding of a bin's end to what it asks of observation times."""
    return nn.Parameter(torch.randn(heads, width, width) * width**-0.5)


def gate_share(logit_ND: Tensor, decides_on: str, bins: int) -> Tensor:
    """The share of the imputation view, (pairs * bins, D): per feature, or one for the bin or the whole sample."""
    logit_PTD = logit_ND.view(-1, bins, logit_ND.shape[1])
    if decides_on != "feature":
        dims = (2,) if decides_on == "bin" else (1, 2)
        logit_PTD = logit_PTD.mean(dims, keepdim=True).expand_as(logit_PTD)
    return torch.sigmoid(logit_PTD).flatten(0, 1)


def with_earlier_bins(features_PTX: Tensor, kernel: int) -> Tensor:
    """(P, T, kernel * X): a causal convolution over bins is a linear map of this bin and the ones before it."""
    bins = features_PTX.shape[1]
    early_PTX = functional.pad(features_PTX, (0, 0, kernel - 1, 0))
    return torch.cat([early_PTX[:, i : i + bins] for i in range(kernel)], dim=-1)


class SeriesEncoder(Encoder):
    """Events of all series modalities -> (P, T, D) tokens, or (P, T + 1, D) with that of their statistics.

    Args:
        features: features of each modality of the group.
        horizon: observation window of each modality, in its time unit.
        scale: of values, by (modality, feature). scores: of the values that statistics are of; None: no statistics.
        bins: T. dim: D. shapes: whether the token of statistics also says which shapes a series is made of.
    """

    def __init__(
        self,
        features: list[int],
        horizon: list[float],
        scale: Standardiser | NormalScores,
        scores: NormalScores | None,
        config: SeriesEncoderConfig,
        bins: int,
        dim: int,
        shapes: bool = False,
    ) -> None:
        super().__init__()
        self.bins, self.tokens = bins, bins + (scores is not None)
        self.config, self.widest = config, max(features)
        self.scale = scale
        self.horizon_M = Constant(torch.tensor(horizon))
        blocks = len(features)
        if config.irregularity != "mtand":
            self.imputation = GroupedLinear(blocks, config.kernel * self.widest * IMPUTATION_INPUTS, dim)
        if config.irregularity != "imputation":
            self.time = TimeEmbedding(config.time_dim, bins)
            self.query = initial_time_queries(config.heads, config.time_dim)
            self.mtand = GroupedLinear(blocks, self.widest * (config.heads + 1), dim)
        if config.irregularity == "utde":
            self.gate = GroupedLinear(blocks, 2 * dim, dim)
        self.statistics = None if scores is None else SeriesStatistics(blocks, self.widest, scores, dim)
        self.shapes = SeriesShapes(features, dim) if shapes else None

    def lay_out(self, group: Any, block_P: Tensor, blocks: int, present: PresentPairs | None) -> EvenLayout | None:
        return None if self.shapes is None else EvenLayout.of(group.offsets, group.channels_O, self.widest)

    def encoded(self, group: Group, layout: GroupLayout, present: PresentPairs | None) -> EncodedGroup:
        if self.statistics is None:
            return super().encoded(group, layout, present)
        bin_N = grid_bins(self.bins, self.tokens).repeat(group.pairs)
        return EncodedGroup(group.modality_P, group.sample_P, layout.pairs, self.tokens, bin_N)

    def forward(self, group: SeriesGroup, layout: GroupLayout) -> Tensor:
        block_P, rows = layout.block_P, layout.pairs.times(self.bins)
        pairs = block_P.shape[0]  # not len(): a graph knows no number yet
        pair_O = offsets_to_ids(group.offsets, group.values_O.shape[0])
        value_O = self.scale(group.values_O, block_P[pair_O], group.channels_O)
        time_O = group.times_O / self.horizon_M()[block_P[pair_O]]
        # One segment a (pair, channel); modalities with fewer channels leave some empty. Events come sorted by them.
        segment_O = pair_O * self.widest + group.channels_O
        by_feature = Segments.of(segment_O, pairs * self.widest, ascending=True)
        views = []
        if self.config.irregularity != "mtand":
            features_PTX = self._impute(value_O, time_O, segment_O, pairs)
            views.append(self.imputation(features_PTX.flatten(0, 1), rows))
        if self.config.irregularity != "imputation":
            features_PTX = self._attend(value_O, time_O, by_feature, pairs)
            views.append(self.mtand(features_PTX.flatten(0, 1), rows))
        if len(views) == 2:
            gate = gate_share(self.gate(torch.cat(views, dim=-1), rows), self.config.gate, self.bins)
            views = [gate * views[0] + (1 - gate) * views[1]]
        grid_PTD = views[0].unflatten(0, (pairs, self.bins))
        if self.statistics is None:
            return grid_PTD
        scores = self.statistics.scale
        score_O = value_O if scores is self.scale else scores(group.values_O, block_P[pair_O], group.channels_O)
        whole_PD = self.statistics(score_O, time_O, by_feature, layout.pairs)
        if self.shapes is not None:
            # Each token says it, as each of a waveform does.
            shapes_PD = self.shapes(score_O, time_O, by_feature, block_P, layout.pairs, layout.own)
            grid_PTD, whole_PD = grid_PTD + shapes_PD[:, None], whole_PD + shapes_PD
        return torch.cat([grid_PTD, whole_PD[:, None].to(grid_PTD.dtype)], 1)

    def _impute(self, value_O: Tensor, time_O: Tensor, segment_O: Tensor, pairs: int) -> Tensor:
        """Last value, its age, seen at all?, mean and count within the bin: (P, T, F * 5)."""
        segments, bins = pairs * self.widest, self.bins
        bin_O = (time_O * bins).long().clamp(0, bins - 1)
        cell_O = segment_O * bins + bin_O
        events_O = torch.arange(len(value_O), device=value_O.device)
        # Events of a segment are sorted by time: the highest event number in a bin is the latest.
        last_C = torch.full((segments * bins,), -1, device=value_O.device).scatter_reduce(0, cell_O, events_O, "amax")
        last_ST = last_C.view(segments, bins).cummax(dim=1).values
        seen_ST = (last_ST >= 0).to(value_O.dtype)
        if len(value_O):
            # -1 means none yet: any event may be picked there, as `seen_ST` zeroes it.
            pick_ST = last_ST.clamp_min(0)
            value_ST, time_ST = value_O[pick_ST] * seen_ST, time_O[pick_ST]
        else:
            value_ST = time_ST = seen_ST
        now_T = torch.arange(1, bins + 1, device=value_O.device, dtype=value_O.dtype) / bins
        age_ST = torch.where(last_ST >= 0, now_T - time_ST, torch.ones_like(seen_ST))
        cells = Segments.of(cell_O, segments * bins, ascending=True)
        count_ST = cells.counts.to(value_O.dtype).view(segments, bins)
        mean_ST = cells.sum(value_O).view(segments, bins) / count_ST.clamp_min(1)
        stacked = torch.stack([value_ST, age_ST, seen_ST, mean_ST, count_ST.log1p()], dim=-1)
        features_PTX = stacked.unflatten(0, (pairs, self.widest)).transpose(1, 2).flatten(2)
        return with_earlier_bins(features_PTX, self.config.kernel)

    def _attend(self, value_O: Tensor, time_O: Tensor, by_feature: Segments, pairs: int) -> Tensor:
        """mTAND: (P, T, F * (H + 1)): one attended value per head, and whether the feature has any event."""
        heads, bins = self.config.heads, self.bins
        score_OX = time_scores(self.time, self.query, time_O, bins)
        # A softmax over a segment's events without its maximum: one pass, and the clamp keeps exp in range.
        weight_OX = score_OX.clamp(-SCORE_LIMIT, SCORE_LIMIT).exp()
        total_SX = by_feature.sum(weight_OX)
        summed_SX = by_feature.sum(weight_OX * value_O[:, None])
        # exp(-30) is the smallest possible total of a segment that has an event.
        attended_SX = summed_SX / total_SX.clamp_min(1e-14)
        attended = attended_SX.view(pairs, self.widest, bins, heads)
        seen = (total_SX[:, :1] > 0).to(attended.dtype).view(pairs, self.widest, 1, 1).expand(-1, -1, bins, 1)
        return torch.cat([attended, seen], dim=-1).transpose(1, 2).flatten(2)


def mtand_reference(query_TK: Tensor, key_LK: Tensor, value_L: Tensor) -> Tensor:
    """One head of mTAND for one feature of one sample, as the paper writes it: softmax(q k^T / sqrt(K)) x -> (T,)."""
    return functional.softmax(query_TK @ key_LK.T * key_LK.shape[1] ** -0.5, dim=-1) @ value_L
