"""A record in memory.

Series are kept in *event coding*: one (time, channel, value) triple per observed value, nothing for a missing one. Of a
timed modality a record holds any number of objects, each with its time.

Shapes: O events or codes, N objects, K moments, W target columns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

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


def sample_name(key: str, moment: float) -> str:
    """What names a sample: its record's key, and the moment behind a @ unless it is NaN, as of records seen whole."""
    return key if np.isnan(moment) else f"{key}@{np.float32(moment)}"


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
class Objects:
    """Texts, pictures, waveforms or vectors of one timed modality, in any order; several may have the same time.

    Attributes:
        times_N: float [N], in the modality's time unit. Without any object the modality is present but empty.
        values: N strings, or N arrays.
    """

    times_N: np.ndarray
    values: Sequence[str] | Sequence[np.ndarray]

    def __len__(self) -> int:
        return len(self.values)

    def newest(self, most: int) -> Objects:
        """The newest ``most`` of them, in order of time; of equal times the later ones."""
        keep = np.argsort(self.times_N, kind="stable")[-most:] if len(self) > most else np.arange(len(self))
        return Objects(self.times_N[keep], [self.values[i] for i in keep.tolist()])  # type: ignore[arg-type]


@dataclass
class Codes:
    """Symbols of one modality, in any order; the same one may be there several times.

    Attributes:
        codes: O names, as the vocabulary has them or not.
        times_O: float [O], in the modality's time unit; None for a modality without times.
        values_O: float [O], NaN where a code has none; None for a modality without values.
    """

    codes: Sequence[str]
    times_O: np.ndarray | None = None
    values_O: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.codes)


Value = Series | Objects | Codes | np.ndarray | str


@dataclass
class Record:
    """What is stored under one key: one sample, or one for each of its moments.

    Attributes:
        key: unique in the data set, 1 to 90 letters, digits, '_' or '-'.
        values: modality name -> Series, Objects (timed), Codes, array or str; an absent modality has no key.
        targets: task name -> number, array, or None; None and NaN mean unlabelled. Of a timed task (K,) or (K, W).
        splits: split name -> part, e.g. ``{"default": "train"}``; a split that is left out does not use this record.
        group: records of one group (a patient, a speaker) belong together; for people and for making splits.
        moments: float [K], ascending, at which timed tasks have labels; None and empty mean one sample of all there is.
    """

    key: str
    values: Mapping[str, Value]
    targets: dict[str, np.ndarray | float | None] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    group: str | None = None
    moments: np.ndarray | None = None
