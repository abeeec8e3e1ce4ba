"""Rows of a table -> timed pictures of records, from films.

Shape legend: N pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from data_shards.records.record import Objects
from data_shards.records.schema import MAX_OBJECTS
from data_shards.sources.readers.pictures import fit_picture
from data_shards.sources.readers.recordings.film_pictures import film_frames
from data_shards.sources.readers.recordings.recording import SignalError
from data_shards.sources.tables.media.cells import FileCells
from data_shards.sources.tables.modalities import SECONDS, ImageTable
from data_shards.sources.tables.rows import Around, Later, Rows
from data_shards.sources.tables.times import narrow_times, times


def films(rows: Rows, spec: ImageTable, around: Around, notes: Counter[str]) -> dict[int, Later]:
    """The pictures of each record's films; without a time a record has one film, which starts at its time 0."""
    files = FileCells(rows, spec, around, "film")
    notes["rows_without_film"] += len(files.there_L) - int(files.there_L.sum())
    if spec.time is None:
        own = {record: [row] for record, row in rows.single() if files.there_L[row]}
        offset_L = np.zeros(len(files.there_L))
    else:
        row_N = np.flatnonzero(files.there_L)
        own = {record: row_N[slots].tolist() for record, slots in rows.runs(row_N)}
        offset_L, _ = times(rows, spec, around, "a film")
    return {record: _Films(files, spec, around.moments, notes, record, mine, offset_L) for record, mine in own.items()}


@dataclass(frozen=True)
class _Films:
    """The films of one record, to be read when the record is wanted; ``offset_L``: when the film of a row starts."""

    files: FileCells
    spec: ImageTable
    moments: bool
    notes: Counter[str]
    record: int
    rows: list[int]
    offset_L: np.ndarray

    def __call__(self) -> Objects:
        """Pictures of all of them in the order of the table, with their times in the modality's unit."""
        found = [pair for row in self.rows for pair in self._pictures(row)]
        time_N = np.array([time for time, _ in found], np.float64)
        record_N = np.zeros(len(found), np.int64)
        self.notes["film_pictures"] += len(found)
        narrow_N = narrow_times(self.files.rows, self.spec, time_N, record_N, None, self.notes)
        return Objects(narrow_N, [picture for _, picture in found])

    def _pictures(self, row: int) -> Iterator[tuple[float, np.ndarray]]:
        spec, where, count = self.spec, self.files.where(self.record, row), 0
        start, end = (None if second is None else Fraction(repr(second)) for second in self.files.stretch(row))
        step: Fraction | Literal["key"] = "key" if spec.frames == "key" else Fraction(repr(float(spec.frames or 0)))
        if (start is not None and start < 0) or (end is not None and end <= (start or 0)):
            raise ValueError(f"{where}: a stretch from second {float(start or 0):g} to {float(end or 0):g} is none")
        try:
            for frame in film_frames(self.files.source(row), step, start or Fraction(0), end):
                time = float(self.offset_L[row]) + float(frame.time / SECONDS[spec.time_unit])
                if self._ends(where, time):
                    return
                if self.moments or time >= 0:
                    shape = (spec.channels, spec.height, spec.width)
                    yield time, fit_picture(frame.picture, where, shape, spec.resize, self.notes, spec.background)
                    count += 1
                if count > MAX_OBJECTS:
                    raise ValueError(f"{where}: more than {MAX_OBJECTS:,} pictures; take fewer of them (frames)")
        except SignalError as error:
            raise ValueError(f"{where}: {error}") from error

    def _ends(self, where: str, time: float) -> bool:
        """Whether the window ends before a time; what lies before it is counted."""
        horizon = self.spec.horizon
        if self.moments or horizon is None or 0 <= time <= horizon:
            return False
        if self.spec.outside == "error":
            raise ValueError(
                f"{where}: its picture at {time:.10g} {self.spec.time_unit} is outside 0 to {horizon:g}; set a larger "
                "horizon, or outside: skip"
            )
        self.notes["film_pictures_before_time_0" if time < 0 else "films_that_go_on_after_the_window"] += 1
        return time > horizon
