"""A table of learned rows, one for each code of a vocabulary, that costs what is looked up.

A model uses it so, on every rank and in every pass, also without any code (ranks exchange rows in it)::

    table = CodeTable(rows, dim, (seed, "codes/drugs"), dispatcher)      # in the model's __init__
    plan = table.lay_out(ids_O)                                          # in `lay_out`, on the CPU; part of the plan
    row_UD = table(plan)                                                 # in `forward`: one row for each distinct id
    x_OD = plan.uses.spread(row_UD)                                      # one for each use, with the exact derivative

What is the same for all uses of a code (a projection, a norm) is best done to `row_UD`.

Shapes: O uses of codes in a batch, U distinct ids among them, D width, R rows of the table, L of them here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parallel.moe.dispatch import Dispatcher
from parallel.moe.initial import Drawn
from parallel.moe.segments import Segments, look_up
from parallel.tables.initial import draw_rows

SPREAD_ABOVE = 16_384
"""Rows of the largest table that every rank holds whole."""


@dataclass(frozen=True)
class TablePlan:
    """What a batch looks up in one table. Its tensors travel to the device with the batch.

    Attributes:
        ids_U: int64, the distinct global ids, ascending.
        uses: which of them each use has: `uses.segment_N` are numbers in [0, U) of the O ids in their order.
        counts: how many of the ids each rank holds, in rank order.
    """

    ids_U: Tensor
    uses: Segments
    counts: tuple[int, ...]


class CodeTable(Drawn):
    """Learned rows by global id.

    Args:
        rows: R, ids are [0, R). dim: D.
        key: what initial rows depend on beside their id, e.g. (seed, name of the modality).
        dispatcher: of the model; knows the ranks over which a large table is spread. None: all rows are here.
        spread_above: a table of more rows is spread.
        std: standard deviation of initial rows.
    """

    def __init__(
        self,
        rows: int,
        dim: int,
        key: tuple[object, ...],
        dispatcher: Dispatcher | None = None,
        spread_above: int = SPREAD_ABOVE,
        std: float = 1.0,
    ) -> None:
        super().__init__()
        self.rows, self.dim, self.key, self.std = rows, dim, key, std
        self.weight = nn.Parameter(torch.empty(rows, dim))
        self.start()

    def draw(self) -> None:
        draw_rows(self.weight, 0, self.key, self.std)

    def lay_out(self, ids_O: Tensor) -> TablePlan:
        """Of a batch's ids (int64, on the CPU, in any order, none at all too).

        Raises:
            ValueError: an id that the table has no row for.
        """
        ids_U, use_O = ids_O.unique(return_inverse=True)
        if len(ids_U) and not 0 <= int(ids_U[0]) <= int(ids_U[-1]) < self.rows:
            wrong = int(ids_U[0]) if int(ids_U[0]) < 0 else int(ids_U[-1])
            raise ValueError(
                f"code {wrong} has no row in a table of {self.rows}: the data's vocabulary is not the model's"
            )
        return TablePlan(ids_U, Segments.of(use_O, len(ids_U)), (len(ids_U),))

    def forward(self, plan: TablePlan) -> Tensor:
        """(U, D): the row of each distinct id, in the precision of the model."""
        return look_up(self.weight, plan.ids_U)
