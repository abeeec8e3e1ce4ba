"""Where a data set stands among the modalities and targets that a model knows.

Within a mixture its modalities and tasks have the mixture's numbers and are called ``<data set>-<name>``. Alone they
keep their names and numbers; the labels of a data set may still be others than those that a model answers.

Shapes: B records, M modalities of the whole, W target columns of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from data_shards.records.codec import Columns
from data_shards.records.schema import DatasetSchema


@dataclass(frozen=True)
class Place:
    """Numbers of one data set's modalities, and its target columns, in a larger schema.

    Attributes:
        name: of the data set in a mixture; empty for a data set alone.
        first, count: its modalities are [first, first + count) of the whole's M.
        columns: (own, whole) target columns of the tasks that both have.
    """

    name: str
    first: int
    count: int
    total: int
    columns: tuple[np.ndarray, np.ndarray]
    width: int

    def put(self, record: Columns) -> Columns:
        """The record with the whole's numbers; labels that it has not are NaN."""
        targets_W = np.full(self.width, np.nan, np.float32)
        own, whole = self.columns
        targets_W[whole] = record.targets_W[own]
        return replace(
            record,
            key=f"{self.name}/{record.key}" if self.name else record.key,
            series_S=record.series_S + np.int16(self.first),
            text_X=record.text_X + np.int16(self.first),
            vector_V=record.vector_V + np.int16(self.first),
            arrays={number + self.first: array for number, array in record.arrays.items()},
            targets_W=targets_W,
        )

    def known(self, records: int) -> np.ndarray | None:
        """bool [B, M]: what a record of this data set could have, as in a batch; None where that is everything."""
        if not self.name:
            return None
        known_M = np.zeros(self.total, bool)
        known_M[self.first : self.first + self.count] = True
        return np.tile(known_M, (records, 1))


def place_of(own: DatasetSchema, whole: DatasetSchema, name: str = "") -> Place:
    """The place of a data set. Its modalities must be those that the whole has under this name, in the same order."""
    prefix = f"{name}-" if name else ""
    numbers = [whole.numbers[prefix + spec.name] for spec in own.modalities]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "the modalities are in another order"
    mine, theirs = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for number, task in enumerate(whole.tasks):
        # Two tasks of one name are the same question only if all that is said about them agrees.
        same = [i for i, other in enumerate(own.tasks) if replace(other, name=prefix + other.name) == task]
        for i in same:
            mine.append(np.arange(own.target_offsets[i], own.target_offsets[i + 1]))
            theirs.append(np.arange(whole.target_offsets[number], whole.target_offsets[number + 1]))
    columns = (np.concatenate(mine), np.concatenate(theirs))
    total, width = len(whole.modalities), int(whole.target_offsets[-1])
    return Place(name, numbers[0], len(numbers), total, columns, width)
