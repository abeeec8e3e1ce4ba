"""CMU-MOSI and CMU-MOSEI: opinions in videos, as words, voice and face, with a sentiment from -3 to 3.

Zadeh et al., "MOSI" (IEEE Intelligent Systems 2016) and "Multimodal Language Analysis in the Wild" (ACL 2018). Reads

* a file that MultiBench (``mosi_data.pkl``, ``mosei_senti_data.pkl``) or MMSA (``aligned_50.pkl``,
  ``unaligned_50.pkl``) hand around, without unpickling it (``plain_pickle``): every view a waveform of one row a step,
  without times;
* or, unaligned, a folder of computational sequences as the CMU Multimodal SDK 1.2 downloads them (``*.csd``, which are
  HDF5: needs h5py): the one whose name has "label" in it says which stretches of which video are samples, and of every
  other one the rows whose middle lies in a stretch are vectors at their times, in seconds since it began (words: one
  text). Parts are 70/10/20 by hash of the video; the SDK's own lists of videos are given with ``splits``.

Traps: in pickles rows are padded with zeros (before or after); some samples have no words at all and are left out,
counted; voice features hold infinities, which become 0, counted; a sample's number in the file differs between
releases. The originals are not free to hand on, so both readers are tested on files in their layouts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from data_shards.paths import absolute_path
from data_shards.records.record import Record, Value
from data_shards.records.schema import DatasetSchema, ModalitySpec, TaskSpec
from data_shards.sources.base import Source, SourceOptions
from data_shards.sources.cmu.sequences import Sequences
from data_shards.sources.readers.plain_pickle import read_plain_pickle

PARTS = {"train": "train", "valid": "val", "test": "test"}
VIEWS = ("text", "audio", "vision")
SEVEN = tuple(f"{n:+d}" if n else "0" for n in range(-3, 4))
TASKS = (
    TaskSpec("sentiment", "regression", dim=1, unit="-3 to 3"),
    TaskSpec("positive", "binary", description="sentiment above 0; unlabelled where it is exactly 0"),
    TaskSpec("seven", "multiclass", classes=SEVEN, description="sentiment rounded to whole numbers"),
)
_UNIT = 500


class CmuOptions(SourceOptions):
    """Options of these sources."""

    path: str = Field(description="pickle file of MultiBench or MMSA, or folder with .csd files")
    splits: str | None = Field(
        None,
        description=".csd: CSV with a column video and one column per split (train, val, test, or empty); default: by "
        "hash",
    )
    average_s: float | None = Field(
        None, gt=0, description=".csd: rows of the same so many seconds become their mean (voice has 100 a second)"
    )


class Cmu(Source):
    """Utterances as records; see the module's text."""

    Options: ClassVar[type[SourceOptions]] = CmuOptions
    name: ClassVar[str] = "cmu"

    def __init__(self, options: CmuOptions) -> None:
        super().__init__(options)
        self.file = absolute_path(options.path)
        self.sequences: Sequences | None = None
        if self.file.is_dir():
            splits = absolute_path(options.splits) if options.splits else None
            self.sequences = Sequences(self.file, splits, options.average_s)
            self.schema = DatasetSchema(self.name, self.sequences.modalities, (*TASKS, *self.sequences.tasks))
            return
        if options.splits or options.average_s:
            raise ValueError("options splits and average_s are for a folder of .csd files; a pickle has its own parts")
        table = _load(str(self.file))
        first = table["train"]
        longest = {view: max(map(len, _views(table, view))) for view in VIEWS}
        modalities = [
            ModalitySpec(view, "waveform", shape=(_width(first[view]),), max_length=longest[view]) for view in VIEWS
        ]
        if "raw_text" in first:
            modalities.append(ModalitySpec("transcript", "text", max_length=8192))
        self.schema = DatasetSchema(self.name, tuple(modalities), TASKS)

    def units(self) -> list[tuple[str, int, int]]:
        """(part of the file, or video; first sample, end) pieces."""
        if self.sequences is not None:
            return self.sequences.units()
        table = _load(str(self.file))
        sizes = {part: len(table[part]["text"]) for part in PARTS}
        return [(part, a, min(a + _UNIT, n)) for part, n in sizes.items() for a in range(0, n, _UNIT)]

    def read(self, unit: tuple[str, int, int], notes: Counter[str]) -> Iterator[Record]:
        """Samples of one piece."""
        if self.sequences is not None:
            for key, video, values, label_C, parts in self.sequences.read(unit, notes):
                targets = _targets(float(label_C[0])) | self.sequences.targets(label_C)
                yield Record(key, values, targets, parts, group=video)
            return
        part, start, end = unit
        table = _load(str(self.file))[part]
        for number in range(start, end):
            values = _values(table, number, notes)
            if "text" not in values:
                notes["samples_without_words"] += 1
                continue
            name = _identity(table["id"][number])
            key = re.sub(r"[^A-Za-z0-9_-]", "-", f"{PARTS[part]}-{number:05d}-{name}")[:90]
            video = re.split(r"\$_\$|\[", name)[0]
            yield Record(key, values, _targets(_label(table, number)), {"default": PARTS[part]}, group=video)


class CmuMosi(Cmu):
    """CMU-MOSI."""

    name = "cmu_mosi"


class CmuMosei(Cmu):
    """CMU-MOSEI."""

    name = "cmu_mosei"


def _values(table: dict[str, Any], number: int, notes: Counter[str]) -> dict[str, Value]:
    """What a sample has, without padding."""
    values: dict[str, Value] = {}
    aligned = len({len(table[view][number]) for view in VIEWS}) == 1 and "audio_lengths" not in table
    said = _filled(np.asarray(table["text"][number]))
    for view in VIEWS:
        rows = np.asarray(table[view][number], np.float32)
        if f"{view}_lengths" in table:
            rows = rows[: int(table[f"{view}_lengths"][number])]
        strange = ~np.isfinite(rows)
        if strange.any():
            notes[f"infinite_{view}_values"] += int(strange.sum())
            rows = np.where(strange, np.float32(0), rows)
        # Aligned rows belong to words: the words say where padding is, and a still face is not padding.
        rows = rows[said if aligned else _filled(rows)]
        if len(rows) and rows.any():
            values[view] = rows
    if "raw_text" in table:
        values["transcript"] = _identity(table["raw_text"][number])
    return values


def _filled(rows: np.ndarray) -> slice:
    """From the first to the last row that is not all zeros."""
    filled = np.flatnonzero(np.asarray(rows).any(axis=1))
    return slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(0, 0)


def _targets(sentiment: float) -> dict[str, np.ndarray | float | None]:
    return {
        "sentiment": sentiment,
        "positive": None if sentiment == 0 else float(sentiment > 0),
        "seven": float(np.clip(np.round(sentiment), -3, 3) + 3),
    }


def _label(table: dict[str, Any], number: int) -> float:
    """MultiBench keeps labels as (1, 1) arrays, MMSA as numbers."""
    labels = table["regression_labels"] if "regression_labels" in table else table["labels"]
    return float(np.asarray(labels[number], np.float32).ravel()[0])


def _identity(value: Any) -> str:
    """Text of a name: texts, bytes, and rows (video, start, end) all occur."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple | np.ndarray):
        return _identity(value[0]) if len(value) else ""
    return str(value)


def _width(rows: Any) -> int:
    return int(np.asarray(rows[0]).shape[1])


def _views(table: dict[str, Any], view: str) -> Iterator[Any]:
    for part in PARTS:
        yield from table[part][view]


@lru_cache(maxsize=1)
def _load(path: str) -> dict[str, Any]:
    """The checked contents of the file."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file; give the .pkl of MultiBench or MMSA, or the folder of .csd files")
    table = read_plain_pickle(Path(path))
    if not isinstance(table, dict) or not set(PARTS) <= set(table):
        found = sorted(map(str, table)) if isinstance(table, dict) else type(table).__name__
        raise ValueError(f"{path} holds {found}, not the parts train, valid and test")
    for part in PARTS:
        own = table[part]
        missing = [name for name in (*VIEWS, "id") if name not in own]
        if missing or not {"labels", "regression_labels"} & set(own):
            raise ValueError(f"{path}: part {part} lacks {', '.join(missing) or 'labels'}; it has {', '.join(own)}")
        sizes = {name: len(own[name]) for name in (*VIEWS, "id")}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"{path}: part {part} has different numbers of samples: {sizes}")
    return table
