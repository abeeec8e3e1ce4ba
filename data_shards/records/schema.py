"""What a record may hold: modalities and tasks.

A data set declares its modalities once. A record then holds *any subset* of them. Three cases stay apart everywhere:
a modality that is **absent** (no key in ``Record.values``), one that is **present but empty** (a series without events)
and a value that was **not observed** (no event for that channel and time).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, get_args

import numpy as np
from pydantic import ConfigDict, TypeAdapter

Kind = Literal["series", "vector", "image", "text", "waveform"]
TaskKind = Literal["binary", "multiclass", "multilabel", "regression"]

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
MAX_CHANNELS = 32_767  # channel numbers are stored as int16
DTYPES: dict[str, tuple[str, ...]] = {
    "series": ("float32",),
    "vector": ("float32",),
    "image": ("uint8", "float32"),
    "text": ("uint8",),
    "waveform": ("float32", "int16"),
}
# The most that a record may hold where nothing is declared. A rule for packing: no memory is ever sized by it.
MAX_LENGTH: dict[str, int] = {"series": 1_000_000, "text": 65_536, "waveform": 10_000_000}
RAGGED = tuple(MAX_LENGTH)


@dataclass(frozen=True)
class ModalitySpec:
    """One modality.

    Attributes:
        name: unique in the data set.
        kind: ``series`` (irregular events), ``vector``, ``image``, ``text`` (UTF-8) or ``waveform`` (regular samples).
        channels: channel names; required for a series, optional features of a vector or leads of a waveform.
        shape: vector ``(F,)``, image ``(C, H, W)``, waveform ``(C,)``; empty for series and text. A vector's and a
            waveform's follows from the channels where it is not given.
        dtype: type of the stored values; empty chooses the first of the kind's.
        unit: unit of the values (free text); ``units`` gives it per channel.
        time_unit: unit of the event times of a series, e.g. ``hours``.
        horizon: length of a series' observation window in ``time_unit``; times lie in [0, horizon].
        rate: samples per second of a waveform.
        max_length: most events (series), samples (waveform) or bytes (text) that a record may hold.
        description: for people.

    Raises:
        ValueError: a field does not fit the kind.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    kind: Kind
    channels: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    dtype: str = ""
    unit: str = ""
    units: tuple[str, ...] = ()
    time_unit: str = ""
    horizon: float | None = None
    rate: float | None = None
    max_length: int | None = None
    description: str = ""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"modality name {self.name!r} must be 1 to 64 letters, digits, '_', '.' or '-'")
        if self.kind not in get_args(Kind):
            raise ValueError(f"modality {self.name}: kind {self.kind!r} is none of {', '.join(get_args(Kind))}")
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "units", tuple(self.units))
        if not self.shape and self.channels and self.kind in ("vector", "waveform"):
            object.__setattr__(self, "shape", (len(self.channels),))
        if not self.dtype:
            object.__setattr__(self, "dtype", DTYPES[self.kind][0])
        if self.max_length is None and self.kind in MAX_LENGTH:
            object.__setattr__(self, "max_length", MAX_LENGTH[self.kind])
        self._check()

    def _check(self) -> None:
        where = f"modality {self.name} ({self.kind})"
        if self.dtype not in DTYPES[self.kind]:
            raise ValueError(f"{where}: dtype {self.dtype!r} is none of {', '.join(DTYPES[self.kind])}")
        rank = {"vector": 1, "image": 3, "waveform": 1}.get(self.kind, 0)
        if len(self.shape) != rank or any(size < 1 for size in self.shape):
            raise ValueError(f"{where}: shape {self.shape} must hold {rank} positive numbers")
        if self.kind == "series" and not self.channels:
            raise ValueError(f"{where}: a series needs the names of its channels")
        if self.channels and self.kind in ("vector", "waveform") and len(self.channels) != self.shape[0]:
            raise ValueError(f"{where}: {len(self.channels)} channel names for shape {self.shape}")
        if len(set(self.channels)) != len(self.channels) or len(self.channels) > MAX_CHANNELS:
            raise ValueError(f"{where}: channel names must be unique and at most {MAX_CHANNELS}")
        if self.units and len(self.units) != len(self.channels):
            raise ValueError(f"{where}: {len(self.units)} units for {len(self.channels)} channels")
        if self.horizon is not None and not self.horizon > 0:
            raise ValueError(f"{where}: horizon {self.horizon} must be positive")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"{where}: max_length {self.max_length} must be positive")

    @property
    def width(self) -> int:
        """Number of channels (series, waveform, image), features (vector) or 1 (text): the length of its statistics."""
        return len(self.channels) if self.kind == "series" else (self.shape[0] if self.shape else 1)

    @property
    def group(self) -> str:
        """The batch group that carries this modality (see ``group_layout``)."""
        if self.kind in ("series", "text"):
            return self.kind
        return f"{self.kind}/{'x'.join(map(str, self.shape))}"


@dataclass(frozen=True)
class TaskSpec:
    """One thing to predict.

    Attributes:
        name: unique in the data set.
        kind: ``binary``, ``multiclass``, ``multilabel`` or ``regression``.
        classes: class names (multiclass, multilabel; optional (negative, positive) for binary).
        dim: width of the logits: binary 1, multiclass and multilabel the number of classes, regression n. 0 derives it.
        unit: unit of a regression target.
        description: for people.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    kind: TaskKind
    classes: tuple[str, ...] = ()
    dim: int = 0
    unit: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"task name {self.name!r} must be 1 to 64 letters, digits, '_', '.' or '-'")
        if self.kind not in get_args(TaskKind):
            raise ValueError(f"task {self.name}: kind {self.kind!r} is none of {', '.join(get_args(TaskKind))}")
        object.__setattr__(self, "classes", tuple(self.classes))
        expected = {"binary": 1, "regression": self.dim or 1}.get(self.kind, len(self.classes))
        if self.kind in ("multiclass", "multilabel") and len(self.classes) < (2 if self.kind == "multiclass" else 1):
            raise ValueError(f"task {self.name} ({self.kind}): {len(self.classes)} class names are too few")
        if self.kind == "binary" and len(self.classes) not in (0, 2):
            raise ValueError(f"task {self.name} (binary): give two class names or none, not {len(self.classes)}")
        if self.dim not in (0, expected) or expected < 1:
            raise ValueError(f"task {self.name} ({self.kind}): dim {self.dim} must be {expected}")
        object.__setattr__(self, "dim", expected)

    @property
    def width(self) -> int:
        """Columns of the target: 1 for binary and multiclass (the class number), else ``dim``."""
        return 1 if self.kind in ("binary", "multiclass") else self.dim

    def check(self, target_W: np.ndarray) -> str | None:
        """None if the labelled (not NaN) entries are legal, otherwise the sentence that says what is wrong."""
        known = target_W[~np.isnan(target_W)]
        if not np.isfinite(known).all():
            return f"task {self.name}: the target is infinite"
        if self.kind == "regression":
            return None
        top = len(self.classes) if self.kind == "multiclass" else 2
        bad = known[(known < 0) | (known >= top) | (known != np.floor(known))]
        if len(bad):
            return f"task {self.name} ({self.kind}): label {bad[0]:g} is out of range, legal are 0 to {top - 1}"
        return None


@dataclass(frozen=True)
class DatasetSchema:
    """All modalities and tasks of a data set; the order of both is part of the format.

    Raises:
        ValueError: no modality, or a name twice.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    modalities: tuple[ModalitySpec, ...]
    tasks: tuple[TaskSpec, ...] = field(default=())
    description: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", tuple(self.modalities))
        object.__setattr__(self, "tasks", tuple(self.tasks))
        if not 1 <= len(self.modalities) <= MAX_CHANNELS:
            raise ValueError(f"data set {self.name}: {len(self.modalities)} modalities; 1 to {MAX_CHANNELS} are legal")
        for what, names in (("modality", self.modality_names), ("task", self.task_names)):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"data set {self.name}: {what} {', '.join(twice)} is declared twice")

    @cached_property
    def modality_names(self) -> tuple[str, ...]:
        """Names in schema order: the position is the modality's number."""
        return tuple(m.name for m in self.modalities)

    @cached_property
    def task_names(self) -> tuple[str, ...]:
        """Names in schema order."""
        return tuple(t.name for t in self.tasks)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Modality name -> number."""
        return {name: number for number, name in enumerate(self.modality_names)}

    @cached_property
    def target_offsets(self) -> tuple[int, ...]:
        """Start of each task's columns in the concatenated target row, and the total width at the end."""
        return tuple(np.cumsum([0, *(task.width for task in self.tasks)]).tolist())

    def task(self, name: str) -> TaskSpec:
        """The task of that name; ValueError lists the known ones."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise ValueError(f"data set {self.name} has no task {name!r}; it has {', '.join(self.task_names) or 'none'}")

    def to_json(self) -> str:
        """Canonical JSON (sorted keys, no spaces)."""
        return json.dumps(_ADAPTER.dump_python(self, mode="json"), sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str | bytes) -> DatasetSchema:
        """Inverse of ``to_json``; ValueError on unknown or illegal fields."""
        return _ADAPTER.validate_json(text)

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return self._digest


def group_layout(schema: DatasetSchema) -> dict[str, list[int]]:
    """Batch groups of a schema: group id -> modality numbers, ascending.

    ``series`` and ``text`` hold all modalities of their kind; fixed shapes get one group per distinct shape:
    ``vector/F``, ``image/CxHxW``, ``waveform/C``.
    """
    layout: dict[str, list[int]] = {}
    for number, modality in enumerate(schema.modalities):
        layout.setdefault(modality.group, []).append(number)
    return {group: layout[group] for group in sorted(layout)}


_ADAPTER = TypeAdapter(DatasetSchema)
