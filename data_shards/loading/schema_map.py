"""Where a data set stands among the modalities, channels and targets that a model knows: by name, in any order.

Within a mixture its modalities and tasks have the mixture's numbers and are called ``<data set>-<name>``. Alone they
keep their names; a model that was trained on the same ones in another order finds each under its own number. The labels
of a data set may still be others than those that a model answers.

Shapes: B records, M modalities of the whole, W target columns of the whole, S series and O observations of a record, C
channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_shards.records.columns import Columns
from data_shards.records.schema import DatasetSchema, ModalitySpec, TaskSpec
from data_shards.records.statistics import SplitStatistics


@dataclass(frozen=True)
class Place:
    """Numbers of one data set's modalities, channels and target columns in a larger schema.

    Attributes:
        name: of the data set in a mixture; empty for a data set alone.
        numbers: own modality number -> number among the whole's M.
        channels: own modality number -> number of each of its channels in the whole; where they stand otherwise only.
        widths: own modality number -> features, of a vector.
        columns: (own, whole) target columns of the tasks that both have.
        same: whether all of it is as it was.
    """

    name: str
    numbers: np.ndarray
    channels: dict[int, np.ndarray]
    widths: np.ndarray
    total: int
    columns: tuple[np.ndarray, np.ndarray]
    width: int
    same: bool

    def put(self, record: Columns) -> Columns:
        """The record with the whole's numbers; labels that it has not are NaN."""
        if self.same:
            return record
        if self.channels:
            record = self._with_channels(record)
        own, whole = self.columns
        targets_KW = np.full((len(record.targets_KW), self.width), np.nan, np.float32)
        targets_KW[:, whole] = record.targets_KW[:, own]
        return replace(
            record,
            key=f"{self.name}/{record.key}" if self.name else record.key,
            series_S=self.numbers[record.series_S],
            text_X=self.numbers[record.text_X],
            vector_V=self.numbers[record.vector_V],
            codes_Q=self.numbers[record.codes_Q],
            empty_E=np.sort(self.numbers[record.empty_E]),
            arrays={int(self.numbers[number]): array for number, array in record.arrays.items()},
            array_times={int(self.numbers[number]): times for number, times in record.array_times.items()},
            targets_KW=targets_KW,
        )

    def _with_channels(self, record: Columns) -> Columns:
        """Channels where the whole has them, still under the data set's own modality numbers."""
        series_O = np.repeat(record.series_S, record.counts_S)
        channels_O = record.channels_O.copy()
        features_ = record.features_.copy()
        place_V = np.cumsum([0, *self.widths[record.vector_V]])
        arrays = dict(record.arrays)
        for number, channel_C in self.channels.items():
            mine_O = series_O == number
            channels_O[mine_O] = channel_C[record.channels_O[mine_O]]
            for v in np.flatnonzero(record.vector_V == number).tolist():
                features_[place_V[v] + channel_C] = record.features_[place_V[v] : place_V[v + 1]]
            if number in arrays:
                # Of a waveform (L, C) the last axis, of an image (C, H, W) the first.
                axis = 1 if arrays[number][0].ndim == 2 else 0
                arrays[number] = [np.take(array, np.argsort(channel_C), axis=axis) for array in arrays[number]]
        # As packed: series by series, in each by channel, in each by time; equal times keep their order.
        rank_O = np.repeat(np.arange(len(record.series_S)), record.counts_S)
        order_O = np.lexsort((record.times_O, channels_O, rank_O))
        return replace(
            record,
            times_O=record.times_O[order_O],
            channels_O=channels_O[order_O],
            values_O=record.values_O[order_O],
            features_=features_,
            arrays=arrays,
        )

    @property
    def could_have(self) -> np.ndarray:
        """bool [M]: what a record of this data set could have."""
        known_M = np.zeros(self.total, bool)
        known_M[self.numbers] = True
        return known_M

    def known(self, records: int) -> np.ndarray | None:
        """bool [B, M]: what a record of this data set could have, as in a batch; None where that is everything."""
        return np.tile(self.could_have, (records, 1)) if self.name else None


def place_of(own: DatasetSchema, whole: DatasetSchema, name: str = "") -> Place:
    """The place of a data set. The whole has each of its modalities under this name, with the same channels."""
    prefix = f"{name}-" if name else ""
    numbers = np.array([whole.numbers[prefix + spec.name] for spec in own.modalities], np.int16)
    theirs = [whole.modalities[number] for number in numbers.tolist()]
    moved = [channel_places(spec, other) for spec, other in zip(own.modalities, theirs, strict=True)]
    channels = {n: found for n, found in enumerate(moved) if found is not None}
    columns = _target_columns(own, whole, prefix)
    total, width = len(whole.modalities), int(whole.target_offsets[-1])
    in_order = np.array_equal(numbers, np.arange(total)) and np.array_equal(columns[0], columns[1])
    same = not name and in_order and not channels and len(columns[0]) == width == int(own.target_offsets[-1])
    widths = np.array([spec.shape[0] if spec.kind == "vector" else 0 for spec in own.modalities], np.int64)
    return Place(name, numbers, channels, widths, total, columns, width, same)


def channel_places(own: ModalitySpec, other: ModalitySpec) -> np.ndarray | None:
    """int16 [C]: where each channel stands in the other; None where all stand where they stood.

    Raises ValueError: they are not the same channels.
    """
    if own.channels == other.channels:
        return None
    if sorted(own.channels) != sorted(other.channels):
        raise ValueError(
            f"modality {own.name} has the channels {', '.join(own.channels)}, and {other.name} has "
            f"{', '.join(other.channels)}"
        )
    return np.array([other.channels.index(channel) for channel in own.channels], np.int16)


def same_question(own: TaskSpec, whole: TaskSpec, prefix: str = "") -> bool:
    """Whether two tasks are one: all that is said about them agrees, but for the words for people."""
    return replace(own, name=prefix + own.name, description=whole.description) == whole


def _target_columns(own: DatasetSchema, whole: DatasetSchema, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    mine, theirs = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for number, task in enumerate(whole.tasks):
        for i in [i for i, other in enumerate(own.tasks) if same_question(other, task, prefix)]:
            mine.append(np.arange(own.target_offsets[i], own.target_offsets[i + 1]))
            theirs.append(np.arange(whole.target_offsets[number], whole.target_offsets[number + 1]))
    return np.concatenate(mine), np.concatenate(theirs)


def statistics_in(statistics: SplitStatistics, own: DatasetSchema, whole: DatasetSchema) -> SplitStatistics:
    """Statistics of a data set with each modality's channels in the order of the whole."""
    tables = dict(statistics.modalities)
    for spec in own.modalities:
        moved = channel_places(spec, whole.modalities[whole.numbers[spec.name]])
        if moved is not None and spec.name in tables:
            table, order = tables[spec.name], np.argsort(moved).tolist()
            names = ("count", "mean", "std", "min", "max", *(["quantiles"] if table.quantiles else []))
            columns: dict[str, Any] = {name: getattr(table, name) for name in names}
            ordered: dict[str, Any] = {name: tuple(column[c] for c in order) for name, column in columns.items()}
            tables[spec.name] = replace(table, **ordered)
    return replace(statistics, modalities=tables)
