"""Anything that answers, opened: a checkpoint, a baseline, or an ensemble of them. All give the same tables.

A data set is cut into stretches as `inference.predictor` cuts it; each is predicted on its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import torch

from data_shards import Batch, DataConfig, EpochOrder, TaskSpec, open_manifest
from data_shards.loading.collate import Collator
from data_shards.loading.schema_map import place_of
from data_shards.shards.reader import Reader
from trainer.baseline.features.fill import rows
from trainer.baseline.features.table import READ, Table
from trainer.baseline.stored import Baseline, read_baseline
from trainer.checkpoints.description import schema_difference
from trainer.checkpoints.find import open_checkpoint
from trainer.checkpoints.pieces import CheckpointError
from trainer.ensemble.combine import combined
from trainer.inference.predictor import Predictor, Stretch, cut_stretches
from trainer.inference.request import Request
from trainer.metrics.prediction_table import predictions_of, predictions_table


@dataclass(frozen=True)
class BaselineRequest:
    """What is predicted by a baseline. Plain values: it travels to other processes. `part`: None = every record."""

    url: str
    data: DataConfig
    part: str | None = None


@dataclass(frozen=True)
class EnsembleRequest:
    """What is predicted by several. Attributes: weights: task -> weight of each member. tasks: that all answer."""

    members: tuple[Request | BaselineRequest, ...]
    weights: Mapping[str, tuple[float, ...]]
    tasks: tuple[TaskSpec, ...]


AnyRequest = Request | BaselineRequest | EnsembleRequest


class Answers(Protocol):
    """Tables of predictions, stretch by stretch."""

    tasks: list[TaskSpec]

    def stretches(self) -> list[Stretch]:
        """All of the part."""

    def __call__(self, stretch: Stretch) -> tuple[pa.Table, dict[str, int]]:
        """The stretch's rows, in storage order, and how many samples were skipped for which reason."""


def open_answers(request: AnyRequest, device: torch.device | str = "cpu") -> Answers:
    """Raises ValueError: a member that cannot be read, or data that do not fit it."""
    if isinstance(request, EnsembleRequest):
        return EnsembleAnswers(request, device)
    if isinstance(request, BaselineRequest):
        return BaselineAnswers(request)
    return Predictor(request, open_checkpoint(request.checkpoint), device)


class BaselineAnswers:
    """A baseline on packed data. Raises CheckpointError: it was learned on other modalities."""

    def __init__(self, request: BaselineRequest) -> None:
        self._baseline: Baseline = read_baseline(request.url)
        self.tasks = [model.task for model in self._baseline.models.values()]
        manifest, layout, data = open_manifest(request.data.url), self._baseline.layout, request.data
        difference = schema_difference(layout.schema, manifest.schema, tasks=False)
        if difference:
            raise CheckpointError(f"{manifest.url} does not fit baseline {request.url}: {difference}")
        self._reader = Reader(manifest, data, request.part)
        self._place, self._collate = place_of(manifest.schema, layout.schema), Collator(layout.schema)
        self._counts = manifest.counts(data.split, request.part)
        self._order = EpochOrder(self._counts, 0, 0, data.window_chunks, shuffle=False)

    def stretches(self) -> list[Stretch]:
        """All of the part."""
        return cut_stretches(self._counts)

    def __call__(self, stretch: Stretch) -> tuple[pa.Table, dict[str, int]]:
        """See `Answers`. Raises ShardError for damaged records, unless the data section says to skip them."""
        tables: list[pa.Table] = []
        skipped: Counter[str] = Counter()
        for start in range(stretch.start, stretch.stop, READ):
            wanted = self._order.take(start, min(start + READ, stretch.stop))
            records, numbers, lost = self._reader.read(*wanted)
            skipped.update(lost)
            batch = self._collate([self._place.put(r) for r in records], numbers, self._place.known(len(records)))
            tables.append(self._rows(batch))
        return pa.concat_tables(tables), dict(skipped)

    def _rows(self, batch: Batch) -> pa.Table:
        x_BX = rows(self._baseline.layout, batch)[:, self._baseline.column_X]
        table = Table(x_BX, batch.present_BM.numpy(), batch.index_B, batch.targets, batch.moment_B, {})
        return predictions_table(self.tasks, self._baseline.predictions(table), batch.keys)


class EnsembleAnswers:
    """Members on the same data, and the mean of what they say."""

    def __init__(self, request: EnsembleRequest, device: torch.device | str = "cpu") -> None:
        self.tasks = list(request.tasks)
        self._weights = request.weights
        self._members = [open_answers(member, device) for member in request.members]

    def stretches(self) -> list[Stretch]:
        """All of the part."""
        return self._members[0].stretches()

    def __call__(self, stretch: Stretch) -> tuple[pa.Table, dict[str, int]]:
        """See `Answers`. Raises ValueError: members read different samples."""
        said = [member(stretch) for member in self._members]
        together = combined(self.tasks, [predictions_of(table)[1] for table, _ in said], self._weights)
        first, skipped = said[0]
        keys = first["key"].to_pylist() if "key" in first.column_names else None
        return predictions_table(self.tasks, together, keys), skipped
