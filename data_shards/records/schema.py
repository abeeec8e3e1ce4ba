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
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from pydantic import ConfigDict, SerializerFunctionWrapHandler, TypeAdapter, model_serializer

Kind = Literal["series", "vector", "image", "text", "waveform", "codes"]
TaskKind = Literal["binary", "multiclass", "multilabel", "regression", "survival"]

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
MAX_CHANNELS = 32_767  # channel numbers are stored as int16
DTYPES: dict[str, tuple[str, ...]] = {
    "series": ("float32",),
    "vector": ("float32",),
    "image": ("uint8", "float32"),
    "text": ("uint8",),
    "waveform": ("float32", "int16"),
    "codes": ("int32",),
}
# The most that a record may hold where nothing is declared. A rule for packing: no memory is ever sized by it.
MAX_LENGTH: dict[str, int] = {"series": 1_000_000, "text": 65_536, "waveform": 10_000_000, "codes": 1_000_000}
RAGGED = tuple(MAX_LENGTH)
LENGTH_UNITS = {"series": "observations", "text": "bytes", "waveform": "samples", "codes": "codes"}  # of RAGGED
MAX_OBJECTS = 100_000  # of one modality in one record
# Numbers of codes: two that no vocabulary names, then those of the vocabulary in its order.
UNKNOWN, RARE, FIRST_CODE = 0, 1, 2
SECONDS = {"seconds": 1.0, "minutes": 60.0, "hours": 3_600.0, "days": 86_400.0, "weeks": 604_800.0}
TIMED = "timed_"  # begins the names of groups whose objects have times
MAX_CODES = 1 << 24


def _said(table: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Without later keys that say nothing: older data keep the digest that is in their records."""
    return {key: value for key, value in table.items() if key not in later or value != later[key]}


def unit_ratio(unit: str, other: str) -> float:
    """How many of ``other`` one ``unit`` is; ValueError unless both are the same, or both are known."""
    if unit == other:
        return 1.0
    seconds = [SECONDS.get(name.lower()) for name in (unit, other)]
    if seconds[0] is None or seconds[1] is None:
        raise ValueError(f"times in {unit!r} and in {other!r} cannot be compared; use one of {', '.join(SECONDS)}")
    return seconds[0] / seconds[1]


def _single(edges: tuple[float, ...]) -> list[float]:
    return np.asarray(edges, np.float32).tolist()


@dataclass(frozen=True)
class ModalitySpec:
    """One modality.

    Attributes:
        name: unique in the data set.
        kind: ``series`` (irregular events), ``vector``, ``image``, ``text`` (UTF-8), ``waveform`` (regular samples) or
            ``codes`` (symbols of a vocabulary).
        channels: channel names; required for a series, optional features of a vector or leads of a waveform.
        shape: vector ``(F,)``, image ``(C, H, W)``, waveform ``(C,)``; empty for series and text. A vector's and a
            waveform's follows from the channels where it is not given.
        dtype: type of the stored values; empty chooses the first of the kind's.
        unit: unit of the values (free text); ``units`` gives it per channel.
        timed: a record holds any number of objects (texts, pictures, ...), each with its time; codes with times. A
            series has times without it.
        time_unit: unit of times, e.g. ``hours``.
        horizon: length of the observation window in ``time_unit``. Times lie in [0, horizon], unless tasks have labels
            at moments: the window then ends at the moment.
        rate: samples per second of a waveform.
        max_length: most events (series), samples (waveform), bytes (text) or codes that a record may hold; of a timed
            modality that one object may hold.
        max_objects: of a timed modality the newest so many are kept.
        valued: codes may have a value each.
        codes: how many numbers the codes have, with the two reserved ones; 0 until the vocabulary is known.
        vocabulary: SHA-256 of the vocabulary, in hexadecimal; empty until it is known.
        encoder: of a vector that a pretrained encoder made, the encoder's digest; empty for all others.
        tokens: how many tokens such a vector holds, one after the other; 0: it is the encoder's one pooled vector.
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
    timed: bool = False
    max_objects: int | None = None
    valued: bool = False
    codes: int = 0
    vocabulary: str = ""
    encoder: str = ""
    tokens: int = 0

    _LATER: ClassVar[dict[str, Any]] = {
        "timed": False,
        "max_objects": None,
        "valued": False,
        "codes": 0,
        "vocabulary": "",
        "encoder": "",
        "tokens": 0,
    }

    @model_serializer(mode="wrap")
    def _as_table(self, table: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _said(table(self), self._LATER)

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
        self._check_objects(where)
        self._check_codes(where)
        if (self.encoder or self.tokens) and (self.kind != "vector" or not self.encoder or self.tokens < 0):
            raise ValueError(f"{where}: encoder and tokens are for vectors that an encoder made")
        if self.tokens and self.shape[0] % self.tokens:
            raise ValueError(f"{where}: {self.shape[0]} features are not {self.tokens} tokens of one width")

    def _check_objects(self, where: str) -> None:
        if self.timed and self.kind == "series":
            raise ValueError(f"{where}: a series has times anyway; leave timed out")
        if self.max_objects is None:
            return
        if not self.timed or self.kind == "codes":
            raise ValueError(f"{where}: max_objects is for timed texts, pictures, waveforms and vectors")
        if not 1 <= self.max_objects <= MAX_OBJECTS:
            raise ValueError(f"{where}: max_objects {self.max_objects} must be 1 to {MAX_OBJECTS}")

    def _check_codes(self, where: str) -> None:
        if self.kind != "codes":
            if self.valued or self.codes or self.vocabulary:
                raise ValueError(f"{where}: valued, codes and vocabulary are for the kind codes")
            return
        if self.channels:
            raise ValueError(f"{where}: codes have a vocabulary, no channels")
        if bool(self.codes) != bool(self.vocabulary) or not 0 <= self.codes <= MAX_CODES or self.codes == 1:
            raise ValueError(f"{where}: {self.codes} codes do not go with the vocabulary {self.vocabulary!r}")

    @property
    def has_times(self) -> bool:
        """Whether what a record holds of it stands at times."""
        return self.timed or self.kind == "series"

    @property
    def has_objects(self) -> bool:
        """Whether a record may hold several of it, each with a time of its own: timed, and not codes."""
        return self.timed and self.kind != "codes"

    @property
    def width(self) -> int:
        """Length of its statistics: channels (series, waveform, image), features (vector), 1 (text, codes)."""
        return len(self.channels) if self.kind == "series" else (self.shape[0] if self.shape else 1)

    @property
    def group(self) -> str:
        """The batch group that carries this modality (see ``group_layout``)."""
        kind = f"{TIMED}{self.kind}" if self.timed else self.kind
        return f"{kind}/{'x'.join(map(str, self.shape))}" if self.shape else kind


@dataclass(frozen=True)
class TaskSpec:
    """One thing to predict.

    Attributes:
        name: unique in the data set.
        kind: ``binary``, ``multiclass``, ``multilabel``, ``regression`` or ``survival``.
        classes: class names (multiclass, multilabel; optional (negative, positive) for binary).
        dim: width of the logits: binary 1, multiclass and multilabel the number of classes, regression n, survival the
            number of intervals. 0 derives it.
        unit: unit of a regression target, or of the time of survival.
        description: for people.
        edges: of survival, the ascending ends of the intervals of time.
        timed: labels are those of moments; each is predicted from what lies before.
        time_unit: unit of the moments.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    kind: TaskKind
    classes: tuple[str, ...] = ()
    dim: int = 0
    unit: str = ""
    description: str = ""
    edges: tuple[float, ...] = ()
    timed: bool = False
    time_unit: str = ""

    _LATER: ClassVar[dict[str, Any]] = {"edges": [], "timed": False, "time_unit": ""}

    @model_serializer(mode="wrap")
    def _as_table(self, table: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _said(table(self), self._LATER)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"task name {self.name!r} must be 1 to 64 letters, digits, '_', '.' or '-'")
        if self.kind not in get_args(TaskKind):
            raise ValueError(f"task {self.name}: kind {self.kind!r} is none of {', '.join(get_args(TaskKind))}")
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "edges", tuple(float(edge) for edge in self.edges))
        if (self.kind == "survival") != bool(self.edges) or any(
            not low < high < np.inf
            for low, high in zip((0.0, *_single(self.edges)), _single(self.edges), strict=False)  # as times are kept
        ):
            raise ValueError(
                f"task {self.name} ({self.kind}): edges {self.edges} must ascend from above 0, as float32; "
                "survival has some, other kinds none"
            )
        lengths = {"binary": 1, "regression": self.dim or 1, "survival": len(self.edges)}
        expected = lengths.get(self.kind, len(self.classes))
        if self.kind in ("multiclass", "multilabel") and len(self.classes) < (2 if self.kind == "multiclass" else 1):
            raise ValueError(f"task {self.name} ({self.kind}): {len(self.classes)} class names are too few")
        if self.kind == "binary" and len(self.classes) not in (0, 2):
            raise ValueError(f"task {self.name} (binary): give two class names or none, not {len(self.classes)}")
        if self.dim not in (0, expected) or expected < 1:
            raise ValueError(f"task {self.name} ({self.kind}): dim {self.dim} must be {expected}")
        object.__setattr__(self, "dim", expected)

    @property
    def width(self) -> int:
        """Columns of the target: 1 for binary and multiclass (the class number), 2 for survival, else ``dim``."""
        return {"binary": 1, "multiclass": 1, "survival": 2}.get(self.kind, self.dim)

    def check(self, target_KW: np.ndarray) -> str | None:
        """None if the labelled (not NaN) entries of some samples are legal, otherwise the sentence of what is wrong."""
        if np.isinf(target_KW).any():
            return f"task {self.name}: the target is infinite"
        if self.kind == "regression":
            return None
        if self.kind == "survival":
            return next(filter(None, map(self._check_survival, target_KW.tolist())), None)
        top = len(self.classes) if self.kind == "multiclass" else 2
        # Of NaN every comparison is false.
        bad_KW = (target_KW < 0) | (target_KW >= top) | (target_KW % 1 > 0)
        if bad_KW.any():
            label = target_KW[bad_KW][0]
            return f"task {self.name} ({self.kind}): label {label:g} is out of range, legal are 0 to {top - 1}"
        return None

    def _check_survival(self, target_W: list[float]) -> str | None:
        time, seen = target_W
        if np.isnan(time) and np.isnan(seen):
            return None
        if not time >= 0 or seen not in (0.0, 1.0):
            return f"task {self.name} (survival): time {time:g} must be 0 or more, and seen {seen:g} must be 0 or 1"
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
        try:
            _ = self.moment_ratios
        except ValueError as error:
            raise ValueError(f"data set {self.name}: {error}") from error

    @cached_property
    def modality_names(self) -> tuple[str, ...]:
        """Names in schema order: the position is the modality's number."""
        return tuple(m.name for m in self.modalities)

    @cached_property
    def task_names(self) -> tuple[str, ...]:
        """Names in schema order."""
        return tuple(t.name for t in self.tasks)

    @cached_property
    def has_moments(self) -> bool:
        """Whether a record is seen up to each of its labelled moments: one sample a moment."""
        return any(task.timed for task in self.tasks)

    @cached_property
    def moment_unit(self) -> str:
        """Unit of the moments: the first timed task's."""
        return next((task.time_unit for task in self.tasks if task.timed), "")

    @cached_property
    def moment_ratios(self) -> tuple[float, ...]:
        """Of each modality, how many of its time units one unit of the moments is; 1 where it has no times.

        Raises ValueError: units that cannot be compared, or timed tasks with different ones.
        """
        if not self.has_moments:
            return tuple(1.0 for _ in self.modalities)
        other = {task.time_unit for task in self.tasks if task.timed} - {self.moment_unit}
        if other:
            raise ValueError(f"timed tasks count time in {self.moment_unit!r} and in {', '.join(sorted(other))}")
        unit = self.moment_unit
        return tuple(unit_ratio(unit, m.time_unit) if m.has_times else 1.0 for m in self.modalities)

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

    ``series``, ``text`` and ``codes`` hold all modalities of their kind; fixed shapes get one group per distinct shape:
    ``vector/F``, ``image/CxHxW``, ``waveform/C``. Timed modalities are apart from the others: ``timed_text``, ...
    """
    layout: dict[str, list[int]] = {}
    for number, modality in enumerate(schema.modalities):
        layout.setdefault(modality.group, []).append(number)
    return {group: layout[group] for group in sorted(layout)}


_ADAPTER = TypeAdapter(DatasetSchema)
