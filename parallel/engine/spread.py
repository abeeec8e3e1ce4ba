"""The tables of a model that are spread over ranks, in the engine: kept from DeepSpeed, and updated beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from parallel.engine.fragments import Fragment
from parallel.mesh import Mesh
from parallel.tables.adamw import RowAdamW
from parallel.tables.table import CodeTable, spread_tables
from parallel.tables.updates import RowUpdates


class SpreadTables:
    """Those of one model. A frozen one is looked up like the others, and is in nothing else.

    Args:
        row_dtype: what their rows are given out in. betas, eps, weight_decay, no_decay, clip: as of the engine.

    Raises:
        ValueError: a table was built for other ranks than the mesh's, or betas that do not go with one.
    """

    def __init__(
        self,
        model: nn.Module,
        mesh: Mesh,
        row_dtype: torch.dtype,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        no_decay: Callable[[str, nn.Parameter], bool],
        clip: float,
    ) -> None:
        self._all, self._clip = spread_tables(model), clip
        self.trained: dict[str, CodeTable] = {}
        self._updates: dict[str, RowUpdates] = {}
        for name, table in self._all.items():
            if table.ranks != mesh.world:
                raise ValueError(
                    f"Table '{name}' was built for {table.ranks} ranks, but the mesh has {mesh.world}: build the model "
                    "with mesh.dispatcher()."
                )
            table.row_dtype = row_dtype
            table.updates = None
            if not table.weight.requires_grad:
                continue
            decay = 0.0 if no_decay(name, table.weight) else weight_decay
            rows = RowAdamW(table.weight.detach(), betas, eps, decay)
            self.trained[name] = table
            self._updates[name] = table.updates = RowUpdates(rows, mesh.world)

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Inside, weights of spread tables are none of the model's parameters: nobody copies or casts them."""
        weights = [(table, table._parameters.pop("weight")) for table in self._all.values()]
        try:
            yield
        finally:
            for table, weight in weights:
                table._parameters["weight"] = weight

    # --- a step -------------------------------------------------------------------------------------------------------

    def gradients(self) -> list[Tensor]:
        """Norms of the mean gradients of the rows here: parts of the whole norm, as gradients of one number are."""
        return [updates.gather() for updates in self._updates.values()]

    def finish(self, accepted: bool, norm: Callable[[], float], lr: float) -> None:
        """Update, with the clipping that ZeRO does at this norm, or forget the step."""
        clips = accepted and self._clip and self._updates
        clip = 1 / max(1.0, (norm() + 1e-6) / self._clip) if clips else 1.0
        for updates in self._updates.values():
            updates.update(lr, clip) if accepted else updates.discard()

    # --- state --------------------------------------------------------------------------------------------------------

    def start_at(self, step: int) -> None:
        """What is in the fragments is the state after `step` steps."""
        for updates in self._updates.values():
            updates.optimizer.start_at(step)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Logical shapes of trained tables."""
        return {name: (table.rows, table.dim) for name, table in self.trained.items()}

    def fragments(self) -> list[Fragment]:
        """This rank's block of each trained table, all rows brought up to date."""
        found = []
        for name, updates in self._updates.items():
            rows, table = updates.optimizer, self.trained[name]
            rows.catch_up()
            views = [t.view(-1) for t in (rows.weight_LD, rows.exp_avg_LD, rows.exp_avg_sq_LD)]
            shape, start = (table.rows, table.dim), table.ids.start * table.dim
            found.append(Fragment(name, shape, start, views[0].numel(), *views))
        return found
