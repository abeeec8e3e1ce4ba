"""Computational sequences of the CMU Multimodal SDK: HDF5 files ``NAME/data/VIDEO/{features,intervals}``.

Shape legend: N rows of a video, F features, S stretches (samples) of a video, C columns of the labels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.records.record import Objects, Value
from data_shards.records.schema import ModalitySpec, TaskSpec
from data_shards.sources.base import hashed_part
from data_shards.sources.part_lists import read_part_list

SHARES = (("train", 0.7), ("val", 0.1), ("test", 0.2))
EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")  # columns of MOSEI's labels after the sentiment
PAUSE = "sp"  # what stands between words
MOST_TEXT = 8192
TEXTS = "SOU"  # kinds of NumPy types that hold words
Sample = tuple[str, str, dict[str, Value], np.ndarray, dict[str, str]]


class Sequences:
    """The .csd files of one folder.

    Attributes:
        modalities: one of each sequence but the labels'. tasks: emotions, if the labels have them.

    Raises:
        ValueError: h5py is missing, a file is no such sequence, or not exactly one holds labels.
    """

    def __init__(self, folder: Path, splits: Path | None, average_s: float | None) -> None:
        self.average_s = average_s
        self.files = {_name(file): file for file in sorted(folder.glob("*.csd"))}
        labels = [name for name in self.files if "label" in name.lower()]
        if len(labels) != 1:
            found = ", ".join(self.files) or "none"
            raise ValueError(
                f"{folder}: one .csd file has to hold the labels (a sequence with label in its name), and its "
                f"sequences are {found}; leave one of them there"
            )
        self.labels = self.files.pop(labels[0])
        with _sequence(self.labels) as stream:
            self.stretches = {video: _intervals(self.labels, video, own) for video, own in _data(stream).items()}
            self.columns = max(_width(own) for own in _data(stream).values())
        longest = max(float((own_S2[:, 1] - own_S2[:, 0]).max(initial=0)) for own_S2 in self.stretches.values())
        self.modalities = tuple(_modality(name, file, longest) for name, file in self.files.items())
        if not self.modalities:
            raise ValueError(f"{folder} holds labels and nothing else; add the .csd files of words, voice or face")
        about = "each is there to some degree"
        emotions = (TaskSpec("emotions", "multilabel", classes=EMOTIONS, description=about),)
        self.tasks = emotions if self.columns > len(EMOTIONS) else ()
        self.part_list = read_part_list(splits, ["video"]) if splits else None

    def units(self) -> list[tuple[str, int, int]]:
        """(video, 0, its samples)."""
        return [(video, 0, len(own_S2)) for video, own_S2 in sorted(self.stretches.items())]

    def targets(self, label_C: np.ndarray) -> dict[str, np.ndarray | float | None]:
        """Of the emotions."""
        return {"emotions": (label_C[1 : len(EMOTIONS) + 1] > 0).astype(np.float32)} if self.tasks else {}

    def read(self, unit: tuple[str, int, int], notes: Counter[str]) -> Iterator[Sample]:
        """(key, video, values, labels, parts) of the samples of a video; those without any row are counted."""
        video, start, end = unit
        held = {name: self._rows(file, video, notes) for name, file in self.files.items()}
        with _sequence(self.labels) as stream:
            label_SC = np.asarray(_data(stream)[video]["features"], np.float64).reshape(end, -1)
        if self.part_list is None:
            parts = {"default": hashed_part(video, SHARES)}
        else:
            parts = self.part_list.parts.get(video, {})
            notes["samples_without_part"] += (end - start) * (not parts)
        for number in range(start, end):
            first, last = self.stretches[video][number].tolist()
            values = dict[str, Value]()
            for name, (features_NF, middle_N) in held.items():
                inside_N = (middle_N >= first) & (middle_N < last)
                value = self._value(features_NF[inside_N], middle_N[inside_N] - first)
                values |= {} if value is None else {name: value}
            if not values:
                notes["samples_without_rows"] += 1
                continue
            key = re.sub(r"[^A-Za-z0-9_-]", "-", f"{video}-{number:04d}")[-90:]
            yield key, video, values, label_SC[number], parts

    def _rows(self, file: Path, video: str, notes: Counter[str]) -> tuple[np.ndarray, np.ndarray]:
        """Features of a video, and the middle of each row in seconds; without rows if the file has not the video."""
        with _sequence(file) as stream:
            data = _data(stream)
            if video not in data:
                notes[f"videos_not_in_{_plain(file.stem)}"] += 1
                return np.empty((0, 1), np.float32), np.empty(0)
            intervals_N2 = _intervals(file, video, data[video])
            features_NF = np.asarray(data[video]["features"])
        if len(features_NF) != len(intervals_N2):
            raise ValueError(f"{file}: video {video} has {len(features_NF)} rows and {len(intervals_N2)} intervals")
        if features_NF.dtype.kind not in TEXTS:
            odd_NF = ~np.isfinite(features_NF)
            notes[f"infinite_{_plain(file.stem)}_values"] += int(odd_NF.sum())
            features_NF = np.where(odd_NF, 0.0, features_NF).astype(np.float32)
        return features_NF, intervals_N2.mean(axis=1)

    def _value(self, features_NF: np.ndarray, times_N: np.ndarray) -> Value | None:
        """Words as one text, numbers as vectors at their times; None if there are no rows."""
        if not len(features_NF):
            return None
        order = np.argsort(times_N, kind="stable")
        features_NF, times_N = features_NF[order], times_N[order]
        if features_NF.dtype.kind in TEXTS:
            words = [_text(word) for word in features_NF.reshape(len(features_NF), -1)[:, 0].tolist()]
            said = " ".join(word for word in words if word != PAUSE).encode()[:MOST_TEXT].decode(errors="ignore")
            return said or None
        if self.average_s is not None:
            _, first, count = np.unique(np.floor(times_N / self.average_s), return_index=True, return_counts=True)
            features_NF = np.add.reduceat(features_NF.astype(np.float64), first) / count[:, None]
            times_N = np.add.reduceat(times_N, first) / count
        return Objects(times_N.astype(np.float32), list(features_NF.astype(np.float32)))


def _modality(name: str, file: Path, longest: float) -> ModalitySpec:
    with _sequence(file) as stream:
        first = next(iter(_data(stream).values()), None)
        if first is None:
            raise ValueError(f"{file} holds no video")
        width, kind = _width(first), first["features"].dtype.kind
    if kind in TEXTS:
        return ModalitySpec(name, "text", max_length=MOST_TEXT, description=f"{file.name}, joined by blanks")
    return ModalitySpec(
        name, "vector", shape=(width,), timed=True, time_unit="seconds", horizon=longest, description=file.name
    )


def _sequence(file: Path) -> Any:
    """The open file."""
    try:
        import h5py  # an extra
    except ImportError as error:
        raise ValueError(f"{file} is HDF5, and reading it needs h5py: pip install 'fleximoe[hdf5]'") from error
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise ValueError(f"{file} cannot be read as HDF5: {error}") from error


def _root(stream: Any) -> Any:
    roots = [own for own in stream.values() if hasattr(own, "keys") and "data" in own]
    if len(roots) != 1:
        raise ValueError(f"{stream.filename} is no computational sequence: NAME/data/VIDEO/features and intervals")
    return roots[0]


def _data(stream: Any) -> Any:
    return _root(stream)["data"]


def _name(file: Path) -> str:
    with _sequence(file) as stream:
        return _plain(_root(stream).name.strip("/"))


def _plain(name: str) -> str:
    """A modality's name: glove_vectors, FACET_4.2."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:64]


def _intervals(file: Path, video: str, own: Any) -> np.ndarray:
    """float64 [N, 2] seconds."""
    if "features" not in own or "intervals" not in own:
        raise ValueError(f"{file}: video {video} lacks features or intervals")
    intervals_N2 = np.asarray(own["intervals"], np.float64).reshape(-1, 2)
    if not np.isfinite(intervals_N2).all() or (intervals_N2[:, 1] < intervals_N2[:, 0]).any():
        raise ValueError(f"{file}: an interval of video {video} ends before it begins, or is no number")
    return intervals_N2


def _width(own: Any) -> int:
    shape = own["features"].shape
    return int(shape[1]) if len(shape) > 1 else 1


def _text(word: Any) -> str:
    return word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word)
