"""A record in memory, and the check that it fits its schema.

Series are kept in *event coding*: one (time, channel, value) triple per observed value, nothing for a missing one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from data_shards.records.precision import lost, lost_times, resolution
from data_shards.records.schema import DatasetSchema, ModalitySpec

KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")
PART = re.compile(r"[A-Za-z0-9_-]{1,32}")
# What people call the parts that training, choosing and testing use
_USUAL = {"training": "train", "dev": "val", "valid": "val", "validation": "val", "eval": "val", "testing": "test"}


def unusual_part(part: str) -> str | None:
    """The sentence for a part whose name means train, val or test and is not, so that nothing would use it."""
    usual = _USUAL.get(part.lower(), part.lower())
    if usual == part or usual not in ("train", "val", "test"):
        return None
    return (
        f"no command uses a part named {part!r}; it should be called {usual!r} (in a mapping: split: {{rename: "
        f"{{{part}: {usual}}}}}), or something that does not look like it"
    )


def escape_key(text: str) -> str:
    """Any text as a record key: '_' and whatever a key cannot hold become '_' and two hexadecimal digits a byte."""
    return re.sub(r"[^A-Za-z0-9-]", lambda found: "".join(f"_{byte:02x}" for byte in found[0].encode()), text)


def unescape_key(key: str) -> str:
    """Inverse of `escape_key`."""
    return re.sub(r"(?:_[0-9a-f]{2})+", lambda found: bytes.fromhex(found[0].replace("_", "")).decode(), key)


@dataclass
class Series:
    """Irregular events of one modality.

    Attributes:
        times_O: float32 [O], in the modality's time unit.
        channels_O: integers [O], channel number of each event.
        values_O: float32 [O].
    """

    times_O: np.ndarray
    channels_O: np.ndarray
    values_O: np.ndarray

    def __len__(self) -> int:
        return len(self.times_O)

    @staticmethod
    def from_dense(times_L: np.ndarray, values_LF: np.ndarray, mask_LF: np.ndarray) -> Series:
        """Events of a table of L times and F channels; ``mask_LF`` is true where a value was observed."""
        step_O, channel_O = np.nonzero(mask_LF)
        return Series(
            np.asarray(times_L, np.float32)[step_O],
            channel_O.astype(np.int16),
            np.asarray(values_LF, np.float32)[step_O, channel_O],
        )


@dataclass
class Record:
    """One sample.

    Attributes:
        key: unique in the data set, 1 to 90 letters, digits, '_' or '-'.
        values: modality name -> Series, array or str; an absent modality has no key.
        targets: task name -> number, array, or None; None and NaN mean unlabelled.
        splits: split name -> part, e.g. ``{"default": "train"}``; a split that is left out does not use this record.
        group: records of one group (a patient, a speaker) belong together; for people and for making splits.
    """

    key: str
    values: dict[str, Series | np.ndarray | str]
    targets: dict[str, np.ndarray | float | None] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    group: str | None = None


def validate(schema: DatasetSchema, record: Record) -> None:
    """Raise ValueError naming the key, the modality or task, and what does not fit."""
    if not KEY.fullmatch(record.key):
        raise ValueError(
            f"record key {record.key!r} must be 1 to 90 letters, digits, '_' or '-' (a dot splits a sample; in a "
            "mapping: records: {keys: escape})"
        )
    for name, value in record.values.items():
        if name not in schema.numbers:
            raise ValueError(f"record {record.key}: modality {name!r} is not in schema {schema.name}")
        problem = _problem(schema.modalities[schema.numbers[name]], value)
        if problem:
            raise ValueError(f"record {record.key}, modality {name}: {problem}")
    for split, part in record.splits.items():
        if not PART.fullmatch(split) or not PART.fullmatch(part):
            raise ValueError(f"record {record.key}: split {split!r}: {part!r} must be letters, digits, '_' or '-'")
        if problem := unusual_part(part):
            raise ValueError(f"record {record.key}, split {split!r}: {problem}")
    target_row(schema, record)


def target_row(schema: DatasetSchema, record: Record) -> np.ndarray:
    """float32 [W]: the targets of all tasks side by side in schema order, NaN where unlabelled.

    Raises:
        ValueError: an unknown task, a wrong width, or a label out of range.
    """
    unknown = sorted(set(record.targets) - set(schema.task_names))
    if unknown:
        raise ValueError(f"record {record.key}: task {', '.join(unknown)} is not in schema {schema.name}")
    row = np.full(schema.target_offsets[-1], np.nan, np.float32)
    for task, start, end in zip(schema.tasks, schema.target_offsets, schema.target_offsets[1:], strict=False):
        value = record.targets.get(task.name)
        if value is None:
            continue
        target = np.atleast_1d(np.asarray(value, np.float32))
        rounded = lost(np.atleast_1d(np.asarray(value, np.float64))) if task.kind == "regression" else None
        if rounded:
            raise ValueError(f"record {record.key}, task {task.name}: {rounded}; subtract a constant from the target")
        if target.shape != (end - start,):
            raise ValueError(
                f"record {record.key}, task {task.name}: target shape {target.shape}, not ({end - start},)"
            )
        problem = task.check(target)
        if problem:
            raise ValueError(f"record {record.key}, {problem}")
        row[start:end] = target
    return row


def _problem(spec: ModalitySpec, value: Series | np.ndarray | str) -> str | None:
    if spec.kind == "series":
        return _series_problem(spec, value) if isinstance(value, Series) else _wrong_type("a Series", value)
    if spec.kind == "text":
        if not isinstance(value, str):
            return _wrong_type("a str", value)
        size = len(value.encode())
        return f"{size} bytes of text, at most {spec.max_length} are allowed" if size > (spec.max_length or 0) else None
    return _array_problem(spec, value) if isinstance(value, np.ndarray) else _wrong_type("an array", value)


def _wrong_type(wanted: str, value: object) -> str:
    return f"needs {wanted}, got {type(value).__name__}"


def _series_problem(spec: ModalitySpec, series: Series) -> str | None:
    times, channels, values = series.times_O, series.channels_O, series.values_O
    if not (times.ndim == 1 and times.shape == channels.shape == values.shape):
        return f"times {times.shape}, channels {channels.shape} and values {values.shape} must be equally long"
    if len(times) > (spec.max_length or 0):
        return f"{len(times)} events, at most {spec.max_length} are allowed"
    if len(times) == 0:
        return None
    if channels.dtype.kind not in "iu":
        return f"channel numbers must be integers, not {channels.dtype}"
    if channels.min() < 0 or channels.max() >= len(spec.channels):
        return f"channel {channels.min()} to {channels.max()} is outside 0 to {len(spec.channels) - 1}"
    if not (np.isfinite(times).all() and np.isfinite(values).all()):
        return "times and values must be finite; leave a missing value out instead of storing NaN"
    rounded = _rounded(times.astype(np.float64)) if times.dtype != np.float32 else None
    if rounded:
        return f"{rounded}; subtract the record's time 0 in float64 before"
    rounded = lost(values.astype(np.float64)) if values.dtype != np.float32 else None
    if rounded:
        return f"{rounded}; subtract a constant from the values"
    if spec.horizon is not None and (times.min() < 0 or times.max() > spec.horizon):
        return f"times {times.min():g} to {times.max():g} leave the window 0 to {spec.horizon:g} {spec.time_unit}"
    return None


def _rounded(time_O: np.ndarray) -> str | None:
    gaps = np.diff(np.unique(time_O))
    return lost_times(time_O, resolution(time_O), float(np.median(gaps)) if len(gaps) else np.inf)


def _array_problem(spec: ModalitySpec, array: np.ndarray) -> str | None:
    shape = array.shape[1:] if spec.kind == "waveform" and array.ndim == 2 else array.shape
    if shape != spec.shape or (spec.kind == "waveform" and array.ndim != 2):
        wanted = ("L", *spec.shape) if spec.kind == "waveform" else spec.shape
        return f"shape {array.shape}, not ({', '.join(map(str, wanted))})"
    if array.dtype != np.dtype(spec.dtype):
        return f"dtype {array.dtype}, not {spec.dtype}"
    if spec.kind == "waveform" and len(array) > (spec.max_length or 0):
        return f"{len(array)} samples, at most {spec.max_length} are allowed"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return "holds NaN or infinity; add an indicator feature, or leave the modality out"
    return None
