"""Codes -> tokens: a row of a table for each code, which its value changes, where it has one.

The codes of all modalities of a group lie in one table, one modality's behind the other's; each has rows of its own for
codes that are unknown and for those that are rare. Cost follows the codes that are there, not the vocabulary.

Without times, learned queries read the codes of a pair, whose order means nothing. With times each code is an object of
its own (`over_time`).

Shape legend: P rows of the group (pairs), O codes of all of them, T tokens of a pair without times, D width, M blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from data_shards import CodesGroup
from parallel import CodeTable, TablePlan
from parallel.moe.segments import Segments
from trainer.models.encoders.layout import Encoder, GroupLayout, PresentPairs
from trainer.models.encoders.over_time import ObjectTimes, OverTime
from trainer.models.layers.attention import read_segments
from trainer.models.layers.grouped_linear import Blocks, GroupedLinear
from trainer.models.layers.standardise import Constant, Standardiser
from trainer.models.layers.token_layout import EncodedGroup
from trainer.models.numbers.scale import NormalScores


@dataclass(frozen=True)
class CodeRows:
    """Codes of each block, and the rows of the table that they are."""

    codes: Blocks
    table: TablePlan


class CodeEmbedding(nn.Module):
    """(O, D) of a group's codes.

    Args:
        table: a row for each code of each modality. sizes: codes of each. valued: whether any may have values.
        scale: of values, by modality.
    """

    def __init__(self, table: CodeTable, sizes: list[int], valued: bool, scale: Standardiser | NormalScores) -> None:
        super().__init__()
        self.table, self.sizes = table, sizes
        self.scale = scale
        self.value = GroupedLinear(len(sizes), 2, 2 * table.dim) if valued else None

    def lay_out(self, group: CodesGroup, block_P: Tensor, blocks: int) -> tuple[CodeRows, Tensor]:
        """And the row of the group that each code is of, (O,)."""
        pair_O = torch.repeat_interleave(group.offsets.diff())
        block_O = block_P[pair_O]
        start_M = torch.tensor([0, *self.sizes[:-1]], device="cpu").cumsum(0)
        codes = Blocks.of(torch.bincount(block_O, minlength=blocks))
        return CodeRows(codes, self.table.lay_out(group.ids_O + start_M[block_O])), pair_O

    def forward(self, group: CodesGroup, rows: CodeRows) -> Tensor:
        # Every rank asks, also without any code: rows of large tables come from other ranks.
        code_OD = rows.table.uses.spread(self.table(rows.table))
        if self.value is None:
            return code_OD
        known_O1 = (~group.values_O.isnan())[:, None].float()
        block_O = rows.codes.segments.segment_N
        value_O1 = self.scale(group.values_O.nan_to_num()[:, None], block_O) * known_O1
        scale_OD, shift_OD = self.value(torch.cat([value_O1, known_O1], 1), rows.codes).chunk(2, dim=1)
        return code_OD * (1 + scale_OD) + shift_OD


@dataclass(frozen=True)
class CodesLayout:
    """Rows of the table, and who they belong to: the pair of each code, or, of timed ones, their places in time."""

    rows: CodeRows
    by_pair: Segments | None
    over_time: Any


class CodesEncoder(Encoder):
    """Codes without times: (P, T, D). A pair without codes gives its modality's queries alone."""

    def __init__(self, embedding: CodeEmbedding, tokens: int, dim: int) -> None:
        super().__init__()
        self.embedding, self.tokens = embedding, tokens
        self.norm, self.value = nn.LayerNorm(dim), nn.Linear(dim, dim)
        self.query_MTD = nn.Parameter(torch.randn(len(embedding.sizes), tokens, dim) * dim**-0.5)

    def lay_out(self, group: CodesGroup, block_P: Tensor, blocks: int, present: PresentPairs | None) -> CodesLayout:
        rows, pair_O = self.embedding.lay_out(group, block_P, blocks)
        return CodesLayout(rows, Segments.of(pair_O, group.pairs, ascending=True), None)

    def forward(self, group: CodesGroup, layout: GroupLayout) -> Tensor:
        own: CodesLayout = layout.own
        assert own.by_pair is not None
        code_OD = self.norm(self.embedding(group, own.rows))
        query_PTD = layout.pairs.segments.spread(self.query_MTD)
        return query_PTD + read_segments(code_OD, self.value(code_OD), own.by_pair, query_PTD)


class TimedCodesEncoder(Encoder):
    """Codes with times: each an object of one token -> tokens of all pairs."""

    timed = True

    def __init__(self, embedding: CodeEmbedding, over_time: OverTime, horizon: list[float]) -> None:
        super().__init__()
        self.embedding, self.over_time, self.tokens = embedding, over_time, 1
        self.horizon, self.horizon_M = horizon, Constant(torch.tensor(horizon))

    def lay_out(self, group: CodesGroup, block_P: Tensor, blocks: int, present: PresentPairs | None) -> CodesLayout:
        assert present is not None
        rows, row_O = self.embedding.lay_out(group, block_P, blocks)
        block_O = block_P[row_O]
        time_O = group.times_O / torch.tensor(self.horizon, device="cpu")[block_O]
        times = ObjectTimes(present.number(block_O, group.sample_P[row_O]), time_O, rows.codes)
        return CodesLayout(rows, None, self.over_time.lay_out(times, present))

    def encoded(self, group: Any, layout: GroupLayout, present: PresentPairs | None) -> EncodedGroup:
        assert present is not None
        return self.over_time.encoded(layout.own.over_time, present)

    def forward(self, group: CodesGroup, layout: GroupLayout) -> Tensor:
        own: CodesLayout = layout.own
        block_O = own.rows.codes.segments.segment_N
        code_OD = self.embedding(group, own.rows)
        return self.over_time(code_OD[:, None], group.times_O / self.horizon_M()[block_O], own.over_time)  # type: ignore[no-any-return]
