"""A table of learned rows, one for each code of a vocabulary, that costs what is looked up.

A model uses it so, on every rank and in every pass, also without any code (ranks exchange rows in it)::

    table = CodeTable(rows, dim, (seed, "codes/drugs"), dispatcher)      # in the model's __init__
    plan = table.lay_out(ids_O)                                          # in `lay_out`, on the CPU; part of the plan
    row_UD = table(plan)                                                 # in `forward`: one row for each distinct id
    x_OD = plan.uses.spread(row_UD)                                      # one for each use, with the exact derivative

What is the same for all uses of a code (a projection, a norm) is best done to `row_UD`.

A small table is a parameter like any other. One of more than `spread_above` rows is spread over all ranks of the run,
moments and all: each holds a block of neighbouring ids, and no rank a copy of another's. Ids travel to the ranks that
have their rows, rows come back, and gradients go the same way home, so a step costs what its batch looks up, however
many rows there are. (Experts are spread over an expert-parallel group and copied for each: all of them are used in
every step. Copies of a table would have to be told of the rows that any rank has used.) The rows of such a table are
updated by `parallel.tables.updates`, not by ZeRO, and learn the same.

Shapes: O uses of codes in a batch, U distinct ids among them, D width, R rows of the table, L of them here, S rows that
all ranks ask this one for, G ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.config import SPREAD_ABOVE
from parallel.moe.dispatch import Dispatcher
from parallel.moe.initial import Drawn
from parallel.moe.rows.exchange import exchange_rows
from parallel.moe.segments import Segments, look_up
from parallel.tables.initial import draw_rows
from parallel.tables.updates import RowUpdates


@dataclass(frozen=True)
class TablePlan:
    """What a batch looks up in one table. Its tensors travel to the device with the batch.

    Attributes:
        ids_U: int64, the distinct global ids, ascending.
        uses: which of them each use has: `uses.segment_N` are numbers in [0, U) of the O ids in their order.
        counts: how many of the ids each rank holds, in rank order; counts_G: the same, int64.
    """

    ids_U: Tensor
    uses: Segments
    counts: tuple[int, ...]
    counts_G: Tensor


def first_row(rows: int, ranks: int, rank: int) -> int:
    """Where the block of a rank begins; block r ends where block r + 1 begins."""
    return rank * rows // ranks


class CodeTable(Drawn):
    """Learned rows by global id.

    Args:
        rows: R, ids are [0, R). dim: D.
        key: what initial rows depend on beside their id, e.g. (seed, name of the modality).
        dispatcher: of the model; knows the ranks over which a large table is spread. None: all rows are here.
        spread_above: a table of more rows is spread.
        std: standard deviation of initial rows.

    Attributes:
        spread: whether it is, also over one rank.
        ids: global ids of the rows here.
        weight: (L, D). Of a table that is spread it stays fp32 and gets no `grad` once an engine has the model.
        updates: what the engine has made for a spread table that is trained.
        row_dtype: what rows of a spread table travel in and are given out in; None: as they are kept.
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
        self.spread = rows > spread_above
        self._group = dispatcher.world_group if self.spread and dispatcher is not None else None
        ranks, rank = (1, 0) if self._group is None else (dist.get_world_size(self._group), dist.get_rank(self._group))
        self._starts = [first_row(rows, ranks, r) for r in range(ranks + 1)]
        self.ids = range(self._starts[rank], self._starts[rank + 1])
        self.weight = nn.Parameter(torch.empty(len(self.ids), dim))
        self.updates: RowUpdates | None = None
        self.row_dtype: torch.dtype | None = None
        self.start()

    @property
    def ranks(self) -> int:
        """Ranks over which it is spread; 1 for a table that is whole everywhere."""
        return len(self._starts) - 1

    def draw(self) -> None:
        draw_rows(self.weight, self.ids.start, self.key, self.std)

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
        # Ascending ids lie by rank already.
        ends = torch.searchsorted(ids_U, torch.tensor(self._starts, device=ids_U.device))
        counts_G = ends.diff()
        return TablePlan(ids_U, Segments.of(use_O, len(ids_U)), tuple(counts_G.tolist()), counts_G)

    def forward(self, plan: TablePlan) -> Tensor:
        """(U, D): the row of each distinct id, in the precision of the model."""
        if not self.spread:
            return look_up(self.weight, plan.ids_U)
        send, receive, ids_S = self._asked(plan)
        row_S = ids_S - self.ids.start
        found_SD = self.updates.read(row_S) if self.updates is not None else look_up(self.weight, row_S)
        found_SD = found_SD.to(self.row_dtype or found_SD.dtype)
        return found_SD if self._group is None else exchange_rows(found_SD, self._group, receive, send)

    def _asked(self, plan: TablePlan) -> tuple[list[int], list[int], Tensor]:
        """Ids sent to each rank, ids that came from each, and those, rank by rank."""
        send = list(plan.counts)
        if self._group is None:
            return send, send, plan.ids_U
        received_G = torch.empty_like(plan.counts_G)
        dist.all_to_all_single(received_G, plan.counts_G, group=self._group)
        # The one wait of the host: it must know the sizes of the exchanges.
        receive: list[int] = received_G.tolist()
        ids_S = plan.ids_U.new_empty(sum(receive))
        dist.all_to_all_single(ids_S, plan.ids_U, receive, send, group=self._group)
        return send, receive, ids_S


def spread_tables(model: nn.Module) -> dict[str, CodeTable]:
    """A model's tables that are spread, by the name of their weight."""
    return {
        f"{prefix}.weight" if prefix else "weight": table
        for prefix, table in model.named_modules()
        if isinstance(table, CodeTable) and table.spread
    }
