"""Statistics of a split's train part, for normalising inputs and for choosing losses. Never of any other part.

Sums are merged pairwise (Chan, Golub & LeVeque 1979) in float64 and in a fixed order, so that the result does not
depend on the number of processes. Standard deviations are of the population (divided by n).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from data_shards.records.columns import Columns
from data_shards.records.schema import DatasetSchema
from data_shards.records.survival import count_intervals

TRAIN = "train"


@dataclass(frozen=True)
class ModalityStatistics:
    """Per channel (series, waveform, image), feature (vector) or of the length in bytes (text).

    A channel without any value has count 0, mean 0, std 1 and min = max = 0; a constant one has std 0.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    present: int
    count: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]


@dataclass(frozen=True)
class TaskStatistics:
    """``labelled`` records; ``counts`` per class (binary and multiclass) or of positives per label (multilabel).

    Of survival ``counts`` are those of ``survival.count_intervals``. ``mean`` and ``std`` per target column.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    labelled: int
    counts: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class SplitStatistics:
    """Statistics of one split's train part."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    records: int
    modalities: dict[str, ModalityStatistics] = field(default_factory=dict)
    tasks: dict[str, TaskStatistics] = field(default_factory=dict)


class Moments:
    """Count, mean, sum of squared deviations, minimum and maximum of n channels."""

    def __init__(self, n: int) -> None:
        self.count: np.ndarray = np.zeros(n, np.int64)
        self.mean: np.ndarray = np.zeros(n)
        self.m2: np.ndarray = np.zeros(n)
        self.min: np.ndarray = np.full(n, np.inf)
        self.max: np.ndarray = np.full(n, -np.inf)

    @staticmethod
    def of(channels_O: np.ndarray, values_O: np.ndarray, n: int) -> Moments:
        """Moments of values that are labelled with their channel."""
        moments = Moments(n)
        values = values_O.astype(np.float64)
        moments.count = np.bincount(channels_O, minlength=n)
        moments.mean = np.bincount(channels_O, values, n) / np.maximum(moments.count, 1)
        moments.m2 = np.bincount(channels_O, (values - moments.mean[channels_O]) ** 2, n)
        np.minimum.at(moments.min, channels_O, values)
        np.maximum.at(moments.max, channels_O, values)
        return moments

    def merge(self, other: Moments) -> None:
        """Add the other's values."""
        total = self.count + other.count
        share = other.count / np.maximum(total, 1)
        delta = other.mean - self.mean
        self.m2 += other.m2 + delta**2 * self.count * share
        self.mean += delta * share
        self.count = total
        np.minimum(self.min, other.min, out=self.min)
        np.maximum(self.max, other.max, out=self.max)

    def summary(self, start: int, end: int, present: int) -> ModalityStatistics:
        """The channels [start, end) as plain numbers."""
        cut = slice(start, end)
        empty = self.count[cut] == 0
        std = np.where(empty, 1.0, np.sqrt(np.maximum(self.m2[cut], 0) / np.maximum(self.count[cut], 1)))
        low, high = (np.where(empty, 0.0, bound[cut]) for bound in (self.min, self.max))
        columns = (self.count[cut], self.mean[cut], std, low, high)
        return ModalityStatistics(present, *(tuple(column.tolist()) for column in columns))


class Accumulator:
    """Statistics of one split, built from the columns of train records."""

    def __init__(self, schema: DatasetSchema) -> None:
        self.schema = schema
        self.base = np.concatenate(([0], np.cumsum([m.width for m in schema.modalities])))
        self.records = 0
        self.present = np.zeros(len(schema.modalities), np.int64)
        self.values = Moments(int(self.base[-1]))
        self.targets = Moments(schema.target_offsets[-1])
        self.class_counts = [np.zeros(_classes(task.kind, task.dim), np.int64) for task in schema.tasks]

    def add(self, records: Sequence[Columns]) -> None:
        """Take in some records at once."""
        if not records:
            return
        self.records += len(records)
        for record in records:
            self.present[record.present()] += 1
        pieces = [piece for record in records for piece in self._pieces(record)]
        if pieces:
            channels, values = (np.concatenate(column) for column in zip(*pieces, strict=True))
            self.values.merge(Moments.of(channels, values, len(self.values.count)))
        targets = np.concatenate([record.targets_KW for record in records])
        row, column = np.nonzero(~np.isnan(targets))
        self.targets.merge(Moments.of(column, targets[row, column], targets.shape[1]))
        self._count_classes(targets)

    def merge(self, other: Accumulator) -> None:
        """Add the other's records."""
        self.records += other.records
        self.present += other.present
        self.values.merge(other.values)
        self.targets.merge(other.targets)
        for mine, theirs in zip(self.class_counts, other.class_counts, strict=True):
            mine += theirs

    def _pieces(self, record: Columns) -> list[tuple[np.ndarray, np.ndarray]]:
        """(channel of the whole schema, value) columns of one record."""
        base, modalities = self.base, self.schema.modalities
        pieces = [(np.repeat(base[record.series_S], record.counts_S) + record.channels_O, record.values_O)]
        pieces.append((base[record.text_X], record.sizes_X.astype(np.float32)))
        if len(record.vector_V):
            features = [np.arange(base[n], base[n + 1]) for n in record.vector_V.tolist()]
            pieces.append((np.concatenate(features), record.features_))
        codes = np.repeat(base[record.codes_Q], record.code_counts_Q)
        valued = ~np.isnan(record.code_values_C)
        pieces.append((codes[valued], record.code_values_C[valued]))
        for number, arrays in record.arrays.items():
            channels = np.arange(base[number], base[number + 1])
            if modalities[number].kind == "image":
                channels = channels[:, None, None]
            pieces += [(np.broadcast_to(channels, array.shape).ravel(), array.ravel()) for array in arrays]
        return pieces

    def _count_classes(self, targets: np.ndarray) -> None:
        offsets = self.schema.target_offsets
        for i, task in enumerate(self.schema.tasks):
            own = targets[:, offsets[i] : offsets[i + 1]]
            if task.kind == "multilabel":
                self.class_counts[i] += np.nansum(own, axis=0).astype(np.int64)
            elif task.kind == "survival":
                self.class_counts[i] += count_intervals(task.edges, own)
            elif task.kind != "regression":
                labels = own[~np.isnan(own)].astype(np.int64)
                self.class_counts[i] += np.bincount(labels, minlength=len(self.class_counts[i]))

    def summary(self) -> SplitStatistics:
        """Plain numbers for the manifest."""
        modalities = {
            spec.name: self.values.summary(int(self.base[i]), int(self.base[i + 1]), int(self.present[i]))
            for i, spec in enumerate(self.schema.modalities)
        }
        tasks, offsets = {}, self.schema.target_offsets
        for i, task in enumerate(self.schema.tasks):
            columns = self.targets.summary(offsets[i], offsets[i + 1], 0)
            counts = tuple(self.class_counts[i].tolist())
            tasks[task.name] = TaskStatistics(max(columns.count), counts, columns.mean, columns.std)
        return SplitStatistics(self.records, modalities, tasks)


def _classes(kind: str, dim: int) -> int:
    return {"binary": 2, "regression": 0, "survival": 2 * (dim + 1)}.get(kind, dim)
