"""Predictions of a part, and how they come to the first rank."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from data_shards import TaskSpec
from trainer.worker.collectives import rows_to_first, sum_over_ranks
from trainer.worker.ordered_rows import in_order_over_ranks


@dataclass
class Predictions:
    """What the model said about each record of a part, or about each moment of its records, in data-set order.

    Logits and targets per task are float32.
    """

    index_B: Tensor
    logits: dict[str, Tensor]
    targets: dict[str, Tensor]
    measures: dict[str, Tensor] = field(default_factory=dict)
    """Further numbers of each record (B,), whose means are metrics; NaN where a record has none."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason -> samples of the part that could not be read."""
    moment_B: Tensor | None = None
    """float32, the time up to which the record was seen, NaN for the whole record. None: no record has moments."""

    @property
    def records(self) -> int:
        """Different records."""
        return len(self.index_B.unique())

    def __len__(self) -> int:
        return len(self.index_B)


@dataclass
class PredictionCollector:
    """Keeps predictions batch by batch on one rank, then brings those of all ranks to the first."""

    tasks: list[TaskSpec]
    measures: tuple[str, ...] = ()
    _rows: list[tuple[Tensor, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], Tensor]] = field(
        default_factory=list
    )

    def add(
        self,
        index_B: Tensor,
        moment_B: Tensor,
        logits: dict[str, Tensor],
        targets: dict[str, Tensor],
        measures: dict[str, Tensor] | None = None,
    ) -> None:
        """One batch; `moment_B` is NaN for records that are seen whole."""
        self._rows.append((index_B, logits, targets, measures or {}, moment_B))

    def __len__(self) -> int:
        return sum(len(row[0]) for row in self._rows)

    def to_first(self, skipped: dict[str, int] | None = None) -> Predictions | None:
        """Collective: all samples of all ranks on rank 0, sorted by record and moment; None elsewhere."""
        columns = self._columns()
        # One exchange for all of them: 32-bit words, whatever they mean, so nothing is rounded on the way.
        found_BW = rows_to_first(torch.cat([values.view(torch.int32) for _, _, values in columns], dim=1))
        return None if found_BW is None else self._sorted(found_BW, columns, skipped)

    def to_owners(self, skipped: dict[str, int] | None = None) -> Predictions:
        """Collective: on each rank a stretch of all ranks' samples, sorted by record and moment, with every sample of
        its records; the first rank has the first stretch."""
        columns = self._columns()
        words_BW = torch.cat([values.view(torch.int32) for _, _, values in columns], dim=1)
        found_BW, _ = in_order_over_ranks(words_BW, columns[0][2][:, 0])
        found = self._sorted(found_BW, columns, skipped)
        # Alike on all ranks, as it decides what is computed.
        if sum_over_ranks(torch.tensor(float(found.moment_B is not None))) and found.moment_B is None:
            found.moment_B = torch.full((len(found),), torch.nan)
        return found

    def _sorted(
        self, found_BW: Tensor, columns: list[tuple[str, str, Tensor]], skipped: dict[str, int] | None
    ) -> Predictions:
        widths = [values.view(torch.int32).shape[1] for _, _, values in columns]
        parts = found_BW.split(widths, dim=1)
        # A copy, as a slice without rows keeps the stride of the whole, whatever it is asked.
        index_B = parts[0].clone(memory_format=torch.contiguous_format).view(torch.int64)[:, 0]
        moment_B = parts[1].view(torch.float32)[:, 0]
        order_B = moment_B.argsort(stable=True)
        order_B = order_B[index_B[order_B].argsort(stable=True)]
        has_moments = not bool(moment_B.isnan().all())
        found = Predictions(index_B[order_B], {}, {}, {}, skipped or {}, moment_B[order_B] if has_moments else None)
        for (kind, name, _), part_BW in zip(columns[2:], parts[2:], strict=True):
            values = part_BW[order_B].view(torch.float32)
            getattr(found, kind)[name] = values[:, 0] if kind == "measures" else values
        return found

    def _columns(self) -> list[tuple[str, str, Tensor]]:
        """(field of Predictions, name, (B, width)) on the CPU; of a rank that had no record with the same widths."""
        made = [("index_B", "", self._cat([row[0][:, None] for row in self._rows], torch.int64, 1))]
        made.append(("moment_B", "", self._cat([row[4][:, None] for row in self._rows], torch.float32, 1)))
        for task in self.tasks:
            made.append(
                ("logits", task.name, self._cat([r[1][task.name] for r in self._rows], torch.float32, task.dim))
            )
            made.append(
                ("targets", task.name, self._cat([r[2][task.name] for r in self._rows], torch.float32, task.width))
            )
        for name in self.measures:
            made.append(("measures", name, self._cat([r[3][name][:, None] for r in self._rows], torch.float32, 1)))
        return made

    def _cat(self, parts: list[Tensor], dtype: torch.dtype, width: int) -> Tensor:
        return torch.cat([torch.zeros(0, width, dtype=dtype), *(part.detach().to("cpu", dtype) for part in parts)])
