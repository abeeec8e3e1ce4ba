"""A record as it is stored: what a batch is built from.

Rows of one kind lie one after the other, whatever modality they are of: by modality, then by time. Of a modality
without times there is one object, at time 0.

Shapes: S series, O events, X texts, V vectors, Q modalities of codes, C codes, N objects of one modality, K moments,
W target columns, M modalities of the schema.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from data_shards.records.schema import DatasetSchema

ABSENT = -1


def _none(dtype: str) -> np.ndarray:
    return np.empty(0, dtype)


@dataclass
class Columns:
    """The columns of a record; arrays may be read-only views of a shard's bytes.

    Attributes:
        series_S, counts_S: int16, int32: modality and events of each series; times_O, channels_O, values_O: its events.
        text_X, sizes_X, text_times_X: int16, int32, float32: modality, bytes and time of each text; bytes_: uint8.
        vector_V, vector_times_V: int16, float32; features_: float32, vectors one after the other.
        codes_Q, code_counts_Q: int16, int32; code_ids_C, code_times_C, code_values_C: int32, float32, float32: by time,
            then number; NaN is a code without a value.
        arrays, array_times: by modality number: N pictures (C, H, W) or waveforms (L, C), and their times.
        empty_E: int16, timed modalities that are there and have no object.
        moments_K: float32, times of labels; empty without moments.
        targets_KW: float32, one row a moment, or one row.
    """

    key: str
    series_S: np.ndarray
    counts_S: np.ndarray
    times_O: np.ndarray
    channels_O: np.ndarray
    values_O: np.ndarray
    text_X: np.ndarray
    sizes_X: np.ndarray
    bytes_: np.ndarray
    vector_V: np.ndarray
    features_: np.ndarray
    targets_KW: np.ndarray
    text_times_X: np.ndarray
    vector_times_V: np.ndarray
    arrays: dict[int, list[np.ndarray]] = field(default_factory=dict)
    array_times: dict[int, np.ndarray] = field(default_factory=dict)
    codes_Q: np.ndarray = field(default_factory=lambda: _none("i2"))
    code_counts_Q: np.ndarray = field(default_factory=lambda: _none("i4"))
    code_ids_C: np.ndarray = field(default_factory=lambda: _none("i4"))
    code_times_C: np.ndarray = field(default_factory=lambda: _none("f4"))
    code_values_C: np.ndarray = field(default_factory=lambda: _none("f4"))
    empty_E: np.ndarray = field(default_factory=lambda: _none("i2"))
    moments_K: np.ndarray = field(default_factory=lambda: _none("f4"))

    @property
    def targets_W(self) -> np.ndarray:  # noqa: N802
        """Targets of a record that is one sample."""
        (row_W,) = self.targets_KW
        return row_W  # type: ignore[no-any-return]

    def present(self) -> list[int]:
        """Numbers of the modalities that this record has, ascending."""
        ids = (self.series_S, self.text_X, self.vector_V, self.codes_Q, self.empty_E)
        return sorted({*self.arrays, *(number for column in ids for number in column.tolist())})

    def objects(self, modalities: int) -> np.ndarray:
        """int32 [M]: objects of each modality, 1 for a series and for codes; -1 where absent."""
        objects_M = np.full(modalities, ABSENT, np.int32)
        objects_M[self.empty_E] = 0
        objects_M[self.series_S] = objects_M[self.codes_Q] = 1
        for ids in (self.text_X, self.vector_V):
            for number, count in Counter(ids.tolist()).items():
                objects_M[number] = count
        for number, arrays in self.arrays.items():
            objects_M[number] = len(arrays)
        return objects_M

    def lengths(self, schema: DatasetSchema) -> np.ndarray:
        """int32 [M]: events, codes, or bytes or samples of all objects; objects of fixed shapes; -1 where absent."""
        lengths_M = self.objects(len(schema.modalities))
        lengths_M[self.series_S] = self.counts_S
        lengths_M[self.codes_Q] = self.code_counts_Q
        if len(self.text_X):
            lengths_M[self.text_X] = 0
            np.add.at(lengths_M, self.text_X, self.sizes_X)
        for number, arrays in self.arrays.items():
            if schema.modalities[number].kind == "waveform":
                lengths_M[number] = sum(len(array) for array in arrays)
        return lengths_M


def samples_of(columns: Columns) -> int:
    """How many samples a record is: one a moment, and one if it has none."""
    return max(1, len(columns.moments_K))


def sample_times(columns: Columns, schema: DatasetSchema) -> np.ndarray:
    """float32 [samples]: up to when each sample sees the record; empty where no task has labels at moments."""
    if not schema.has_moments or len(columns.moments_K):
        return columns.moments_K
    return np.array([last_time(columns, schema)], np.float32)


def cut(columns: Columns, schema: DatasetSchema, number: int) -> Columns:
    """The record as it is known at one of its moments: a sample of its own.

    Of what has times nothing is left that lies after the moment, or longer before it than its modality's horizon;
    times then count from the window's start, so that the moment stands at the horizon. Of timed objects the newest
    ``max_objects`` are left. What has no times is whole. A record without moments is known at its last time.

    A modality with times is there from its first row on: before, nobody can know that it will come, so it is absent,
    and after, it may be there and empty, as all of its rows are too old. Hence what the record says of a modality that
    never has a row counts for nothing.

    Args:
        number: of the moment. Without moments in the schema the record stays as it is.
    """
    if not schema.has_moments:
        return columns
    moment = float(sample_times(columns, schema)[number])
    window = _Window(schema, moment)
    series_O = np.repeat(columns.series_S, columns.counts_S)
    keep_O, times_O = window(series_O, columns.times_O)
    codes_C = np.repeat(columns.codes_Q, columns.code_counts_Q)
    keep_C, code_times_C = window(codes_C, columns.code_times_C)
    begun_S = window.begun(series_O, columns.times_O)[columns.series_S]
    begun_Q = window.begun(codes_C, columns.code_times_C)[columns.codes_Q]
    found = replace(
        columns,
        series_S=columns.series_S[begun_S],
        counts_S=_counts(keep_O, columns.counts_S)[begun_S],
        times_O=times_O,
        channels_O=columns.channels_O[keep_O],
        values_O=columns.values_O[keep_O],
        codes_Q=columns.codes_Q[begun_Q],
        code_counts_Q=_counts(keep_C, columns.code_counts_Q)[begun_Q],
        code_ids_C=columns.code_ids_C[keep_C],
        code_times_C=code_times_C,
        code_values_C=columns.code_values_C[keep_C],
        moments_K=np.array([moment], np.float32),
        targets_KW=columns.targets_KW[number : number + 1],
    )
    keep_X, found.text_times_X = window.newest(columns.text_X, columns.text_times_X)
    found.text_X, found.sizes_X = columns.text_X[keep_X], columns.sizes_X[keep_X]
    found.bytes_ = columns.bytes_[np.repeat(keep_X, columns.sizes_X)]
    keep_V, found.vector_times_V = window.newest(columns.vector_V, columns.vector_times_V)
    found.vector_V = columns.vector_V[keep_V]
    widths = np.array([spec.shape[0] if spec.kind == "vector" else 0 for spec in schema.modalities])
    found.features_ = columns.features_[np.repeat(keep_V, widths[columns.vector_V])]
    found.arrays, found.array_times = {}, {}
    for n, arrays in columns.arrays.items():
        keep_N, times_N = window.newest(np.full(len(arrays), n), columns.array_times[n])
        if keep_N.any():
            found.arrays[n], found.array_times[n] = [arrays[i] for i in np.flatnonzero(keep_N).tolist()], times_N
    begun_M = np.zeros(len(schema.modalities), bool)
    for ids, times in _object_rows(columns):
        begun_M |= window.begun(ids, times) & window.timed_M
    begun_M[[*found.text_X.tolist(), *found.vector_V.tolist(), *found.arrays]] = False
    found.empty_E = np.flatnonzero(begun_M).astype(np.int16)
    return found


def last_time(columns: Columns, schema: DatasetSchema) -> float:
    """The latest time of anything in a record, in the moments' unit; 0 if nothing has a time."""
    ratio_M = np.array(schema.moment_ratios)
    found = [0.0]
    for ids, times in timed_rows(columns):
        has_times = np.array([schema.modalities[n].has_times for n in ids.tolist()], bool)
        found += (times[has_times] / ratio_M[ids[has_times]]).tolist()
    return float(np.float32(max(found)))


def timed_rows(columns: Columns) -> list[tuple[np.ndarray, np.ndarray]]:
    """(modality, time) of everything that may have times."""
    rows = [
        (np.repeat(columns.series_S, columns.counts_S), columns.times_O),
        (np.repeat(columns.codes_Q, columns.code_counts_Q), columns.code_times_C),
    ]
    return rows + _object_rows(columns)


def _object_rows(columns: Columns) -> list[tuple[np.ndarray, np.ndarray]]:
    """(modality, time) of each object."""
    rows = [(columns.text_X, columns.text_times_X), (columns.vector_V, columns.vector_times_V)]
    return rows + [(np.full(len(times), number), times) for number, times in columns.array_times.items()]


class _Window:
    """What lies in the windows that end at one moment."""

    def __init__(self, schema: DatasetSchema, moment: float) -> None:
        specs = schema.modalities
        self.timed_M = np.array([spec.has_times for spec in specs])
        self.end_M = moment * np.array(schema.moment_ratios)
        self.horizon_M = np.array([np.inf if spec.horizon is None else spec.horizon for spec in specs])
        self.most_M = np.array([spec.max_objects or 0 for spec in specs])

    def __call__(self, ids: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """bool: which rows of these modalities lie in it; and the times of those, from the window's start on."""
        time = times.astype(np.float64)
        timed, end, horizon = self.timed_M[ids], self.end_M[ids], self.horizon_M[ids]
        keep = ~timed | ((time <= end) & (time >= end - horizon))
        # Where no horizon was declared, times stay as they are.
        start = np.where(timed & np.isfinite(horizon), end - horizon, 0.0)
        return keep, (time - start)[keep].astype(np.float32)

    def begun(self, ids: np.ndarray, times: np.ndarray) -> np.ndarray:
        """bool [M]: modalities that have a row by the end, however long ago; those without times have begun."""
        begun_M = ~self.timed_M
        begun_M[ids[times <= self.end_M[ids]]] = True
        return begun_M

    def newest(self, ids: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As the call, of objects sorted by modality and time; of each modality the newest so many."""
        keep, _ = self(ids, times)
        for number in np.unique(ids[keep & (self.most_M[ids] > 0)]).tolist():
            own = np.flatnonzero(keep & (ids == number))
            keep[own[: -int(self.most_M[number])]] = False
        return keep, self(ids[keep], times[keep])[1]


def _counts(keep_O: np.ndarray, counts_S: np.ndarray) -> np.ndarray:
    """int32 [S]: kept rows of each stretch."""
    stretch_O = np.repeat(np.arange(len(counts_S)), counts_S)
    return np.bincount(stretch_O[keep_O], minlength=len(counts_S)).astype(np.int32)
