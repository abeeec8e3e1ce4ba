"""CMU-MOSI and CMU-MOSEI: opinions in videos, as words, voice and face, with a sentiment from -3 to 3.

Zadeh et al., "MOSI" (IEEE Intelligent Systems 2016) and "Multimodal Language Analysis in the Wild" (ACL 2018). Reads
the files that MultiBench (``mosi_data.pkl``, ``mosei_senti_data.pkl``) and MMSA (``aligned_50.pkl``,
``unaligned_50.pkl``) hand around, without unpickling them (``plain_pickle``); widths are those of the file.

Traps: rows are padded with zeros (before or after); some samples have no words at all and are left out, counted; voice
features hold infinities, which become 0, counted; a sample's number in the file differs between releases.
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
from data_shards.records.record import Record, Series
from data_shards.records.schema import DatasetSchema, ModalitySpec, TaskSpec
from data_shards.sources.base import Source, SourceOptions
from data_shards.sources.readers.plain_pickle import read_plain_pickle

PARTS = {"train": "train", "valid": "val", "test": "test"}
VIEWS = ("text", "audio", "vision")
SEVEN = tuple(f"{n:+d}" if n else "0" for n in range(-3, 4))
_UNIT = 500


class CmuOptions(SourceOptions):
    """Options of these sources."""

    path: str = Field(description="pickle file of MultiBench or MMSA")


class Cmu(Source):
    """Utterances as records; see the module's text."""

    Options: ClassVar[type[SourceOptions]] = CmuOptions
    name: ClassVar[str] = "cmu"

    def __init__(self, options: CmuOptions) -> None:
        super().__init__(options)
        self.file = absolute_path(options.path)
        table = _load(str(self.file))
        first = table["train"]
        longest = {view: max(map(len, _views(table, view))) for view in VIEWS}
        modalities = [
            ModalitySpec(view, "waveform", shape=(_width(first[view]),), max_length=longest[view]) for view in VIEWS
        ]
        if "raw_text" in first:
            modalities.append(ModalitySpec("transcript", "text", max_length=8192))
        tasks = (
            TaskSpec("sentiment", "regression", dim=1, unit="-3 to 3"),
            TaskSpec("positive", "binary", description="sentiment above 0; unlabelled where it is exactly 0"),
            TaskSpec("seven", "multiclass", classes=SEVEN, description="sentiment rounded to whole numbers"),
        )
        self.schema = DatasetSchema(self.name, tuple(modalities), tasks)

    def units(self) -> list[tuple[str, int, int]]:
        """(part of the file, first sample, end) pieces."""
        table = _load(str(self.file))
        sizes = {part: len(table[part]["text"]) for part in PARTS}
        return [(part, a, min(a + _UNIT, n)) for part, n in sizes.items() for a in range(0, n, _UNIT)]

    def read(self, unit: tuple[str, int, int], notes: Counter[str]) -> Iterator[Record]:
        """Samples of one piece."""
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


def _values(table: dict[str, Any], number: int, notes: Counter[str]) -> dict[str, Series | np.ndarray | str]:
    """What a sample has, without padding."""
    values: dict[str, Series | np.ndarray | str] = {}
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
        raise ValueError(f"{path} is not a file; give the .pkl of MultiBench or MMSA")
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
