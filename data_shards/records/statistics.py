"""Statistics of a split's train part, for normalising inputs and for choosing losses. Never of any other part.

Each record counts once, however many moments it is seen at; labels count once for each moment that has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from pydantic import ConfigDict, SerializerFunctionWrapHandler, model_serializer

from data_shards.records.columns import ABSENT, Columns, timed_rows
from data_shards.records.distributions.distribution import Distribution, Spread
from data_shards.records.schema import DatasetSchema
from data_shards.records.survival import count_intervals

TRAIN = "train"
NUMBERS = ("regression", "survival")  # kinds of tasks whose targets are numbers
DENSE_SAMPLE = 1_024  # values of a channel that the sketch sees of each picture and each recording
DISTRIBUTIONS = ("value", "time", "objects", "target")


def _said(table: dict[str, Any]) -> dict[str, Any]:
    """Without later entries that say nothing: older data keep the digest of their manifest."""
    return {key: value for key, value in table.items() if value or key not in ("quantiles", "times", "objects")}


@dataclass(frozen=True)
class ModalityStatistics:
    """Per channel (series, waveform, image), feature (vector), of the length in bytes (text) or of the value (codes).

    A channel without any value has count 0, mean 0, std 1 and min = max = 0; a constant one has std 0.

    Attributes:
        present: records that have the modality.
        quantiles: per channel at `sketch.PROBABILITIES`; empty in data packed before they were kept.
        times: of all events, objects or codes, where the modality has times.
        objects: how many objects or codes a record has that has the modality; None for what has neither.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    present: int
    count: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    quantiles: tuple[tuple[float, ...], ...] = ()
    times: Spread | None = None
    objects: Spread | None = None

    @model_serializer(mode="wrap")
    def _as_table(self, table: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _said(table(self))


@dataclass(frozen=True)
class TaskStatistics:
    """``labelled`` samples; ``counts`` per class (binary and multiclass) or of positives per label (multilabel).

    Of survival ``counts`` are those of ``survival.count_intervals``. ``mean`` and ``std`` per target column, of numbers
    also ``quantiles`` as for modalities.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    labelled: int
    counts: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    quantiles: tuple[tuple[float, ...], ...] = ()

    @model_serializer(mode="wrap")
    def _as_table(self, table: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _said(table(self))


@dataclass(frozen=True)
class SplitStatistics:
    """Statistics of one split's train part."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    records: int
    modalities: dict[str, ModalityStatistics] = field(default_factory=dict)
    tasks: dict[str, TaskStatistics] = field(default_factory=dict)


class Accumulator:
    """Statistics of one split, built from the columns of train records."""

    def __init__(self, schema: DatasetSchema) -> None:
        self.schema = schema
        self.base = np.concatenate(([0], np.cumsum([m.width for m in schema.modalities])))
        self.records = 0
        self.present = np.zeros(len(schema.modalities), np.int64)
        self.values = Distribution(int(self.base[-1]))
        self.times, self.objects = Distribution(len(schema.modalities)), Distribution(len(schema.modalities))
        self.targets = Distribution(schema.target_offsets[-1])
        self._has_times_M = np.array([spec.has_times for spec in schema.modalities])
        self._counted_M = np.array([spec.has_objects or spec.kind == "codes" for spec in schema.modalities])
        self.class_counts = [np.zeros(_classes(task.kind, task.dim), np.int64) for task in schema.tasks]

    @property
    def distributions(self) -> tuple[Distribution, ...]:
        """In the order of `DISTRIBUTIONS`."""
        return self.values, self.times, self.objects, self.targets

    def add(self, records: Sequence[Columns]) -> None:
        """Take in some records at once."""
        if not records:
            return
        self.records += len(records)
        numbers = [number for record in records for number in record.present()]
        self.present += np.bincount(np.array(numbers, np.int64), minlength=len(self.present))
        self._add_values([*self._joined(records), *(piece for record in records for piece in self._dense(record))])
        if self._has_times_M.any():
            self._add_times(records)
        if self._counted_M.any():
            self._count_objects(records)
        targets = np.concatenate([record.targets_KW for record in records])
        row, column = np.nonzero(~np.isnan(targets))
        self.targets.add(column, targets[row, column])
        self._count_classes(targets)

    def _add_values(self, pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]) -> None:
        if pieces:
            channels, values = (np.concatenate([piece[i] for piece in pieces]) for i in range(2))
            some = [np.ones(len(channel), bool) if own is None else own for channel, _, own in pieces]
            self.values.add(channels, values, np.concatenate(some))

    def _add_times(self, records: Sequence[Columns]) -> None:
        rows = [row for record in records for row in timed_rows(record)]
        numbers, times = (np.concatenate(column) for column in zip(*rows, strict=True))
        has_times = self._has_times_M[numbers]
        self.times.add(numbers[has_times], times[has_times])

    def _count_objects(self, records: Sequence[Columns]) -> None:
        """How many objects, or codes, there are of what is there."""
        counts = np.stack([record.objects(len(self.present)) for record in records])
        for i, record in enumerate(records):
            counts[i, record.codes_Q] = record.code_counts_Q
        row, number = np.nonzero((counts != ABSENT) & self._counted_M)
        self.objects.add(number, counts[row, number].astype(np.float32))

    def merge(self, other: Accumulator) -> None:
        """Add the other's records."""
        self.records += other.records
        self.present += other.present
        for mine, theirs in zip(self.distributions, other.distributions, strict=True):
            mine.merge(theirs)
        for counts, more in zip(self.class_counts, other.class_counts, strict=True):
            counts += more

    def _joined(self, records: Sequence[Columns]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        """(channel of the whole schema, value, which of them the sketch sees: None = all) of what lies in columns.

        Of all records at once, kind by kind: of one channel in the records' order.
        """
        base = self.base

        def all_of(name: str) -> np.ndarray:
            return np.concatenate([getattr(record, name) for record in records])

        yield np.repeat(base[all_of("series_S")], all_of("counts_S")) + all_of("channels_O"), all_of("values_O"), None
        yield base[all_of("text_X")], all_of("sizes_X").astype(np.float32), None
        vector_V, features = all_of("vector_V").astype(np.int64), all_of("features_")
        width_V = base[vector_V + 1] - base[vector_V]
        # Features count up from their modality's first channel.
        first_V = base[vector_V] - (np.cumsum(width_V) - width_V)
        yield np.repeat(first_V, width_V) + np.arange(len(features)), features, None
        codes, values = np.repeat(base[all_of("codes_Q")], all_of("code_counts_Q")), all_of("code_values_C")
        valued = ~np.isnan(values)
        yield codes[valued], values[valued], None

    def _dense(self, record: Columns) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        """As `_joined`, of pictures and recordings of one record."""
        base, modalities = self.base, self.schema.modalities
        for number, arrays in record.arrays.items():
            channels = np.arange(base[number], base[number + 1])
            for array in arrays:
                if modalities[number].kind == "image":
                    pixels = array[0].size
                    yield np.repeat(channels, pixels), array.ravel(), np.tile(_every(pixels), len(channels))
                else:
                    yield np.tile(channels, len(array)), array.ravel(), np.repeat(_every(len(array)), len(channels))

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
        return SplitStatistics(self.records, self._modalities(), self._tasks())

    def _modalities(self) -> dict[str, ModalityStatistics]:
        moments = self.values.moments
        columns = [column.tolist() for column in (moments.count, moments.mean, moments.std, *moments.bounds)]
        columns.append([tuple(row) for row in self.values.quantiles().tolist()])
        times, objects = self.times.spreads(), self.objects.spreads()
        tables = {}
        for i, spec in enumerate(self.schema.modalities):
            start, end = int(self.base[i]), int(self.base[i + 1])
            count, mean, std, low, high, quantiles = (tuple(column[start:end]) for column in columns)
            tables[spec.name] = ModalityStatistics(
                int(self.present[i]), count, mean, std, low, high, quantiles, times[i], objects[i]
            )
        return tables

    def _tasks(self) -> dict[str, TaskStatistics]:
        moments, offsets = self.targets.moments, self.schema.target_offsets
        columns = [column.tolist() for column in (moments.mean, moments.std)]
        quantiles = [tuple(row) for row in self.targets.quantiles().tolist()]
        tables = {}
        for i, task in enumerate(self.schema.tasks):
            start, end = offsets[i], offsets[i + 1]
            mean, std = (tuple(column[start:end]) for column in columns)
            labelled, counts = int(moments.count[start:end].max()), tuple(self.class_counts[i].tolist())
            numbers = tuple(quantiles[start:end]) if task.kind in NUMBERS else ()
            tables[task.name] = TaskStatistics(labelled, counts, mean, std, numbers)
        return tables


def _every(size: int) -> np.ndarray:
    """bool [size]: every n-th from the first on, so that at most `DENSE_SAMPLE` are true."""
    return np.arange(size) % max(1, -(-size // DENSE_SAMPLE)) == 0


def _classes(kind: str, dim: int) -> int:
    return {"binary": 2, "regression": 0, "survival": 2 * (dim + 1)}.get(kind, dim)
