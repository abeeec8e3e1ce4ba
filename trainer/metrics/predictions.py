"""Predictions of a part, and how ranks gather them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from data_shards import TaskSpec
from trainer.worker.collectives import gather_rows


@dataclass
class Predictions:
    """What the model said about each record of a part: float32 logits and targets per task, in data-set order."""

    index_B: Tensor
    logits: dict[str, Tensor]
    targets: dict[str, Tensor]
    measures: dict[str, Tensor] = field(default_factory=dict)
    """Further numbers of each record (B,), whose means are metrics; NaN where a record has none."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason -> records of the part that could not be read."""

    def __len__(self) -> int:
        return len(self.index_B)


@dataclass
class PredictionCollector:
    """Gathers predictions batch by batch on one rank, then over all ranks."""

    tasks: list[TaskSpec]
    measures: tuple[str, ...] = ()
    _rows: list[tuple[Tensor, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]] = field(default_factory=list)

    def add(
        self,
        index_B: Tensor,
        logits: dict[str, Tensor],
        targets: dict[str, Tensor],
        measures: dict[str, Tensor] | None = None,
    ) -> None:
        """One batch."""
        self._rows.append((index_B, logits, targets, measures or {}))

    def gather(self, device: torch.device, skipped: dict[str, int] | None = None) -> Predictions:
        """Collective: all records of all ranks, sorted by their place in the data set."""
        index_B = gather_rows(self._cat([row[0] for row in self._rows], torch.int64, 0, device))
        order_B = index_B.argsort()
        logits, targets = {}, {}
        for task in self.tasks:
            width = 1 if task.kind == "multiclass" else task.dim
            logits_BC = self._cat([row[1][task.name] for row in self._rows], torch.float32, task.dim, device)
            target_Bt = self._cat([row[2][task.name] for row in self._rows], torch.float32, width, device)
            logits[task.name] = gather_rows(logits_BC)[order_B].cpu()
            targets[task.name] = gather_rows(target_Bt)[order_B].cpu()
        measures = {
            name: gather_rows(self._cat([row[3][name] for row in self._rows], torch.float32, 0, device))[order_B].cpu()
            for name in self.measures
        }
        return Predictions(index_B[order_B].cpu(), logits, targets, measures, skipped or {})

    def _cat(self, parts: list[Tensor], dtype: torch.dtype, width: int, device: torch.device) -> Tensor:
        shape = (0, width) if width else (0,)
        # A piece without rows first: a rank that had no record gathers the same shapes as the others.
        return torch.cat(
            [torch.zeros(shape, dtype=dtype, device=device), *(p.detach().to(device, dtype) for p in parts)]
        )
