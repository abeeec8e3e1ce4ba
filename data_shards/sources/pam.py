"""PAM: activities of nine people from 17 body-worn sensors, as Raindrop prepared PAMAP2.

Reiss & Stricker (PAMAP2, ISWC 2012); Zhang et al. (Raindrop, ICLR 2022). Expects Raindrop's files: the folder
``processed_data`` with ``PTdict_list.npy`` (5333 x 600 x 17) and ``arr_outcomes.npy``, and ``splits`` beside it.

Traps: a 0 is a missing value, a negative number is a measurement (Raindrop's own mask, value > 0, drops those); windows
of 600 samples at 100 Hz overlap by half and the splits are random, so neighbours in different parts share samples, and
nothing in the files says which. Compare scores on these splits with each other only. The split files are object
arrays; they are read without unpickling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from data_shards.paths import absolute_path
from data_shards.records.record import Record, Series
from data_shards.records.schema import DatasetSchema, ModalitySpec, TaskSpec
from data_shards.sources.base import Source, SourceOptions
from data_shards.sources.readers.plain_pickle import read_plain_npy

RATE = 100.0
PARTS = ("train", "val", "test")
_UNIT = 250


class PamOptions(SourceOptions):
    """Options of this source."""

    path: str = Field(description="Raindrop's PAMdata folder: processed_data/ and splits/")
    per_sensor: bool = Field(True, description="each sensor is a modality of its own; false: one series of all sensors")


class Pam(Source):
    """Windows as records; see the module's text."""

    Options: ClassVar[type[SourceOptions]] = PamOptions

    def __init__(self, options: PamOptions) -> None:
        super().__init__(options)
        self.folder, self.per_sensor = absolute_path(options.path), options.per_sensor
        values, labels = _arrays(str(self.folder))
        sensors = tuple(f"sensor_{number:02d}" for number in range(values.shape[2]))
        groups = [(name,) for name in sensors] if self.per_sensor else [sensors]
        about: dict[str, Any] = {"time_unit": "seconds", "horizon": values.shape[1] / RATE}
        modalities = [ModalitySpec(own[0] if self.per_sensor else "sensors", "series", own, **about) for own in groups]
        classes = tuple(str(number) for number in range(int(labels.max()) + 1))
        self.schema = DatasetSchema("pam", tuple(modalities), (TaskSpec("activity", "multiclass", classes=classes),))
        self.splits = _splits(self.folder, len(labels))

    def units(self) -> list[tuple[int, int]]:
        """[first window, end) pieces."""
        count = len(_arrays(str(self.folder))[1])
        return [(start, min(start + _UNIT, count)) for start in range(0, count, _UNIT)]

    def read(self, unit: tuple[int, int], notes: Counter[str]) -> Iterator[Record]:
        """Windows of one piece."""
        values, labels = _arrays(str(self.folder))
        times_L = np.arange(values.shape[1]) / RATE
        for number in range(*unit):
            value_LF = np.asarray(values[number], np.float32)
            seen_LF = value_LF != 0
            notes["observations"] += int(seen_LF.sum())
            parts = {name: PARTS[table[number]] for name, table in self.splits.items() if table[number] >= 0}
            if not seen_LF.any():
                notes["windows_without_observation"] += 1
                continue
            found = self._series(times_L, value_LF, seen_LF)
            yield Record(f"window-{number:05d}", found, {"activity": float(labels[number])}, parts)

    def _series(self, times_L: np.ndarray, value_LF: np.ndarray, seen_LF: np.ndarray) -> dict[str, Any]:
        if not self.per_sensor:
            return {"sensors": Series.from_dense(times_L, value_LF, seen_LF)}
        return {
            spec.name: Series.from_dense(times_L, value_LF[:, [n]], seen_LF[:, [n]])
            for n, spec in enumerate(self.schema.modalities)
            if seen_LF[:, n].any()
        }


@lru_cache(maxsize=1)
def _arrays(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """(windows [N, L, F] left on disk, labels int64 [N])."""
    home = Path(folder) / "processed_data"
    for name in ("PTdict_list.npy", "arr_outcomes.npy"):
        if not (home / name).is_file():
            raise ValueError(f"{home / name} does not exist; give the folder that holds processed_data/ and splits/")
    values, labels = read_plain_npy(home / "PTdict_list.npy", mmap=True), read_plain_npy(home / "arr_outcomes.npy")
    if not isinstance(values, np.ndarray) or values.ndim != 3 or not isinstance(labels, np.ndarray):
        raise ValueError(f"{home} holds objects, not windows x samples x sensors and their labels; is it another set?")
    labels = labels.reshape(len(labels), -1)[:, 0].astype(np.int64)
    if len(labels) != len(values) or labels.min(initial=0) < 0:
        raise ValueError(f"{home}: {len(values)} windows and {len(labels)} labels from {labels.min(initial=0)}")
    return values, labels


def _splits(folder: Path, count: int) -> dict[str, np.ndarray]:
    """split1, split2, ... -> number of the part (train, val, test) of each window, -1 for none."""
    tables = {}
    for number in range(1, 100):
        path = folder / "splits" / f"PAM_split_{number}.npy"
        if not path.is_file():
            break
        parts = read_plain_npy(path)
        if len(parts) != 3:
            raise ValueError(f"{path} holds {len(parts)} parts, not train, val and test")
        table = np.full(count, -1)
        for code, indices in enumerate(parts):
            place = np.asarray(indices, np.int64)
            if len(place) and (place.min() < 0 or place.max() >= count):
                raise ValueError(f"{path} names window {place.max()}, and there are {count}")
            if (table[place] >= 0).any():
                raise ValueError(f"{path}: a window is in two parts")
            table[place] = code
        tables[f"split{number}"] = table
    if not tables:
        raise ValueError(f"{folder / 'splits'} holds no PAM_split_1.npy")
    return tables
