"""What a data set's head says of all records: added up unit by unit, in the source's order.

It can be kept as bytes, so that another process goes on from there and arrives at the same numbers, bit by bit.
Shapes: M modalities.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_shards.packing.units.encoded import ANY_SIZE, Pair, Summary
from data_shards.records.arrays import dump_tensors, load_tensors
from data_shards.records.distributions.distribution import Moments
from data_shards.records.distributions.sketch import Sketch
from data_shards.records.schema import RAGGED, DatasetSchema
from data_shards.records.statistics import DISTRIBUTIONS, Accumulator
from data_shards.shards.manifest import LENGTHS

_MOMENTS = ("count", "mean", "m2", "min", "max")
_SKETCH = ("channel", "level", "key", "number")


class Totals:
    """Of the units so far.

    Attributes:
        columns: (split, part) -> its number, in the order in which they came up.
        statistics: split -> of its training part. notes: what the source counted.
    """

    def __init__(self, schema: DatasetSchema) -> None:
        self.schema = schema
        self.records = self.observations = 0
        self.columns: dict[Pair, int] = {}
        self.statistics: dict[str, Accumulator] = {}
        self.notes: Counter[str] = Counter()
        self.longest_M: np.ndarray = np.zeros(len(schema.modalities), np.int64)
        self.total_M: np.ndarray = np.zeros(len(schema.modalities), np.int64)

    def add(self, unit: Summary) -> None:
        """Take in the next unit."""
        self.records += len(unit.size_n)
        self.observations += unit.observations
        self.notes += unit.notes
        np.maximum(self.longest_M, unit.longest_M, out=self.longest_M)
        self.total_M += unit.total_M
        self.columns = {pair: number for number, pair in enumerate(self.columns_until(unit, len(unit.size_n)))}
        for split, accumulator in unit.statistics.items():
            # Into one that is its own: what has come from another process cannot be written to.
            self.statistics.setdefault(split, Accumulator(self.schema)).merge(accumulator)

    def columns_until(self, unit: Summary, row: int) -> tuple[Pair, ...]:
        """All pairs that have come up before a row of the next unit, by number."""
        return tuple(dict.fromkeys([*self.columns, *(pair for first, pair in unit.pairs if first < row)]))

    def with_lengths(self, report: dict[str, Any]) -> dict[str, Any]:
        """The report with real lengths of what may be of any length. Raises ValueError: it has such an entry itself."""
        if LENGTHS in report:
            raise ValueError(
                f"source {self.schema.name}: its report has an entry {LENGTHS!r}, which pack writes itself"
            )
        sizes = zip(self.schema.modalities, self.longest_M.tolist(), self.total_M.tolist(), strict=True)
        lengths = {
            spec.name: {"longest": longest, "total": total} for spec, longest, total in sizes if spec.kind in RAGGED
        }
        return {**report, LENGTHS: lengths} if lengths else report

    def to_bytes(self) -> bytes:
        """For `of_bytes`."""
        tensors: dict[str, np.ndarray] = {"longest": self.longest_M, "total": self.total_M}
        for number, accumulator in enumerate(self.statistics.values()):
            tensors |= {f"{number}.{name}": array for name, array in _arrays(accumulator)}
        about = {
            "numbers": [self.records, self.observations, *(own.records for own in self.statistics.values())],
            "columns": list(self.columns),
            "splits": list(self.statistics),
            "notes": self.notes,
        }
        return dump_tensors(tensors, {"totals": json.dumps(about)})

    @staticmethod
    def of_bytes(schema: DatasetSchema, data: bytes) -> Totals:
        """Inverse of `to_bytes`. Raises ValueError, KeyError: they are of something else."""
        tensors, metadata = load_tensors(data, ANY_SIZE)
        about, totals = json.loads(metadata["totals"]), Totals(schema)
        totals.records, totals.observations, *records = about["numbers"]
        totals.columns = {(split, part): number for number, (split, part) in enumerate(about["columns"])}
        totals.notes = Counter(about["notes"])
        totals.longest_M, totals.total_M = tensors["longest"].copy(), tensors["total"].copy()
        for number, (split, own) in enumerate(zip(about["splits"], records, strict=True)):
            totals.statistics[split] = accumulator = Accumulator(schema)
            accumulator.records = own
            _fill(accumulator, {name: tensors[f"{number}.{name}"] for name, _ in _arrays(accumulator)})
        return totals


def _arrays(accumulator: Accumulator) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values of all arrays that an accumulator consists of."""
    yield "present", accumulator.present
    for i, counts in enumerate(accumulator.class_counts):
        yield f"classes.{i}", counts
    for what, distribution in zip(DISTRIBUTIONS, accumulator.distributions, strict=True):
        for name in _MOMENTS:
            yield f"{what}.{name}", getattr(distribution.moments, name)
        for name, column in zip(_SKETCH, distribution.sketch.columns(), strict=True):
            yield f"{what}.{name}", column


def _fill(accumulator: Accumulator, arrays: dict[str, np.ndarray]) -> None:
    """Copies of what `_arrays` gave."""
    accumulator.present = arrays["present"].copy()
    accumulator.class_counts = [arrays[f"classes.{i}"].copy() for i in range(len(accumulator.class_counts))]
    for what, distribution in zip(DISTRIBUTIONS, accumulator.distributions, strict=True):
        channels, limit = distribution.sketch.channels, distribution.sketch.limit
        distribution.moments = Moments(channels)
        for name in _MOMENTS:
            setattr(distribution.moments, name, arrays[f"{what}.{name}"].copy())
        distribution.sketch = Sketch.of_columns(channels, limit, *(arrays[f"{what}.{name}"] for name in _SKETCH))
