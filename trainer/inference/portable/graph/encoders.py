"""Encoders in a form that a graph may hold; see `layers`.

Where training counts on the host how many rows there are (positions of texts, patches of signals), a graph takes as
many as there can be, which follows from sizes alone; those too many are of one more text or signal, and nobody reads
them.

Shapes: P rows of a group, O events, codes, bytes or samples of all of them, R positions, N patches, E (patch, token)
entries, T tokens or bins, S segments, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.inference.portable.graph.layers import attend
from trainer.inference.portable.graph.segments import GraphBlocks, GraphSegments, ids_by_offsets, running_max
from trainer.models.encoders.codes import CodeEmbedding
from trainer.models.encoders.series import SeriesEncoder, with_earlier_bins
from trainer.models.encoders.text import BYTES, TextEncoder, TextLayer
from trainer.models.encoders.waveform import WaveformEncoder, length_features
from trainer.models.layers.attention import read_segments
from trainer.models.numbers.series_shapes import SeriesShapes, starts_of
from trainer.models.numbers.series_statistics import SeriesStatistics, channel_statistics


class GraphCodes(CodeEmbedding):
    """Rows of the table by number; `rows` is the block of each code."""

    def forward(self, group: Any, rows: Any) -> Tensor:
        start_M = torch.tensor([0, *self.sizes[:-1]]).cumsum(0)
        code_OD = functional.embedding(group.ids_O + start_M[rows.block_N], self.table.weight)
        if self.value is None:
            return code_OD
        known_O1 = (~group.values_O.isnan())[:, None].float()
        value_O1 = self.scale(group.values_O.nan_to_num()[:, None], rows.block_N) * known_O1
        scale_OD, shift_OD = self.value(torch.cat([value_O1, known_O1], 1), rows).chunk(2, dim=1)
        return code_OD * (1 + scale_OD) + shift_OD


class GraphSeries(SeriesEncoder):
    """The same, also for a batch without any event."""

    def _impute(self, value_O: Tensor, time_O: Tensor, segment_O: Tensor, pairs: int) -> Tensor:
        segments, bins = pairs * self.widest, self.bins
        cell_O = segment_O * bins + (time_O * bins).long().clamp(0, bins - 1)
        last_ST = running_max(latest(cell_O, segments * bins).view(segments, bins), -1)
        seen_ST = (last_ST >= 0).to(value_O.dtype)
        # Event 0 is none: it stands for cells that have seen nothing.
        none_1 = value_O.new_zeros(1)
        pick_ST = last_ST + 1
        value_ST, time_ST = torch.cat([none_1, value_O])[pick_ST], torch.cat([none_1, time_O])[pick_ST]
        now_T = torch.arange(1, bins + 1, dtype=value_O.dtype) / bins
        age_ST = torch.where(last_ST >= 0, now_T - time_ST, torch.ones_like(seen_ST))
        cells = GraphSegments(cell_O, segments * bins)
        count_ST = cells.counts.to(value_O.dtype).view(segments, bins)
        mean_ST = cells.sum(value_O).view(segments, bins) / count_ST.clamp_min(1)
        stacked = torch.stack([value_ST, age_ST, seen_ST, mean_ST, count_ST.log1p()], dim=-1)
        features_PTX = stacked.unflatten(0, (pairs, self.widest)).transpose(1, 2).flatten(2)
        return with_earlier_bins(features_PTX, self.config.kernel)


class GraphStatistics(SeriesStatistics):
    """The same, also for a batch without any event: one more event is in one more segment."""

    def forward(self, score_O: Tensor, time_O: Tensor, by_feature: Any, pairs: Any) -> Tensor:
        segments, none_1 = by_feature.segments, score_O.new_zeros(1)
        segment_O = torch.cat([by_feature.segment_N, torch.zeros_like(none_1, dtype=torch.int64) + segments])
        more = GraphSegments(segment_O, segments + 1)
        scores_S6, others_S6 = channel_statistics(torch.cat([score_O, none_1]), torch.cat([time_O, none_1]), more)  # type: ignore[arg-type]
        return self.projected(scores_S6[:segments], others_S6[:segments], pairs)


class GraphShapes(SeriesShapes):
    """Of as many moments as there are events: those too many are of one more pair, without events."""

    def forward(
        self, score_O: Tensor, time_O: Tensor, by_feature: Any, block_P: Tensor, pairs: Any, own: Any
    ) -> Tensor:
        number, events = block_P.shape[0], score_O.shape[0]
        more = GraphSegments(by_feature.segment_N, by_feature.segments + self.widest)
        start_P1 = starts_of(by_feature.counts, self.widest)
        start_P2 = torch.cat([start_P1, torch.zeros_like(start_P1[:1]) + events])
        pair_R = ids_by_offsets(start_P2, events)
        value_RF = self.values(score_O, time_O, more, start_P2, pair_R, _and_none(block_P))
        by_pair, looked_at = GraphSegments(pair_R, number + 1), self.whole.shares.detail.moments
        shares_PX = self.whole.shares(value_RF, by_pair, start_P2, looked_at)[:number]
        return self.whole.projected(shares_PX, pairs)  # type: ignore[no-any-return]


class GraphTextLayer(TextLayer):
    """Attention over all positions, those of other texts masked; `layout` is the text of each."""

    def forward(self, x_RD: Tensor, layout: Any) -> Tensor:
        x_RD = x_RD + self.output(attend(self.project(self.attention_norm(x_RD)), layout, self.heads))
        return x_RD + self.dense(self.dense_norm(x_RD))  # type: ignore[no-any-return]


class GraphText(TextEncoder):
    """At most bytes / stride + texts positions."""

    def forward(self, group: Any, layout: Any) -> Tensor:
        texts, held = group.pairs, group.bytes_O.shape[0]
        start_P1 = _starts(_pieces(group.offsets.diff(), self.stride))
        positions = held // self.stride + texts
        text_R = ids_by_offsets(start_P1, positions)
        text_O = ids_by_offsets(group.offsets, held)
        place_O = torch.arange(held) - group.offsets[text_O]
        byte_OD = self.byte(group.bytes_O.long() + (place_O % self.stride) * BYTES)
        x_RD = GraphSegments(start_P1[text_O] + place_O // self.stride, positions).sum(byte_OD)
        place_R = torch.arange(positions) - start_P1[text_R]
        x_RD = x_RD + self.position(place_R.clamp(0, self.position.num_embeddings - 1))
        for layer in self.layers:
            x_RD = layer(x_RD, text_R)
        x_RD, query_PTD = self.norm(x_RD), layout.pairs.segments.spread(self.query_MTD)
        by_text: Any = GraphSegments(text_R, texts + 1)
        asked = torch.cat([query_PTD, torch.zeros_like(self.query_MTD[:1])])
        return query_PTD + read_segments(x_RD, self.value(x_RD), by_text, asked)[:texts]  # type: ignore[no-any-return]


class GraphWaveform(WaveformEncoder):
    """At most samples / patch + signals patches."""

    def forward(self, group: Any, layout: Any) -> Tensor:
        signals, (samples, channels) = group.pairs, group.values_OC.shape
        length_P = group.offsets.diff()
        patches_P = _pieces(length_P, self.patch)
        start_P1, patches = _starts(patches_P), samples // self.patch + signals
        signal_O = ids_by_offsets(group.offsets, samples)
        value_OC = self.standardiser(group.values_OC, layout.block_P[signal_O])
        cell_O = start_P1[signal_O] * self.patch + torch.arange(samples) - group.offsets[signal_O]
        x_NX = GraphSegments(cell_O, patches * self.patch).sum(value_OC).view(patches, self.patch * channels)
        block_N = _and_none(layout.block_P)[ids_by_offsets(start_P1, patches)]
        patch_ND = self.network(x_NX, GraphBlocks(block_N, layout.pairs.blocks))
        token_PTD = self._stretches(patch_ND, patches_P, start_P1, signals)
        length_PD = self.length(length_features(length_P), layout.pairs)
        token_PTD = token_PTD + self.position_TD + length_PD[:, None]
        if self.whole is None:
            return token_PTD
        moments = self.whole.shares.detail.moments
        whole_PD = self.whole(value_OC, GraphSegments(signal_O, signals), group.offsets, moments, layout.pairs)
        return token_PTD + whole_PD[:, None]  # type: ignore[no-any-return]

    def _stretches(self, patch_ND: Tensor, patches_P: Tensor, start_P1: Tensor, signals: int) -> Tensor:
        """As `encoders.waveform.stretch_means`."""
        steps_P = torch.where(patches_P > 0, patches_P.clamp_min(self.tokens), 0)
        first_P1, entries = _starts(steps_P), patch_ND.shape[0] + signals * self.tokens
        signal_E = ids_by_offsets(first_P1, entries)
        steps_E, own_E = _and_none(steps_P)[signal_E].clamp_min(1), _and_none(patches_P)[signal_E]
        step_E = torch.arange(entries) - first_P1[signal_E]
        patch_E = (start_P1[signal_E] + step_E * own_E // steps_E).clamp_max(patch_ND.shape[0] - 1)
        last = signals * self.tokens
        token_E = torch.where(signal_E < signals, signal_E * self.tokens + step_E * self.tokens // steps_E, last)
        token_XD = GraphSegments(token_E, last + 1).mean(patch_ND.index_select(0, patch_E))
        return token_XD[:last].view(signals, self.tokens, patch_ND.shape[1])


def latest(cell_O: Tensor, cells: int) -> Tensor:
    """int64 [cells]: the last of the rows that are in each cell; -1: none is."""
    return torch.full((cells,), -1).scatter_reduce(0, cell_O, torch.arange(cell_O.shape[0]), "amax")


def _pieces(length_P: Tensor, each: int) -> Tensor:
    """How many of this size, the last one perhaps not full. Of numbers above 0 all tools divide alike."""
    return (length_P + each - 1) // each


def _starts(count_P: Tensor) -> Tensor:
    """int64 [P + 1]: where each begins, and where the last one ends."""
    return torch.cat([count_P.new_zeros(1), count_P.cumsum(0)])


def _and_none(x_P: Tensor) -> Tensor:
    """With a 0 for the one more that nobody reads."""
    return torch.cat([x_P, x_P.new_zeros(1)])


ENCODERS: dict[type[nn.Module], type[nn.Module]] = {
    CodeEmbedding: GraphCodes,
    SeriesEncoder: GraphSeries,
    SeriesShapes: GraphShapes,
    SeriesStatistics: GraphStatistics,
    TextEncoder: GraphText,
    TextLayer: GraphTextLayer,
    WaveformEncoder: GraphWaveform,
}
