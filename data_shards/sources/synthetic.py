"""Any number of modalities of chosen kinds with a planted class and score, and the best achievable scores.

The posterior given whatever is present is exact (``planted``), so a trained model can be compared with the optimum
itself: ``best_score`` in the source's report holds the accuracy, AUROC and R^2 of the optimal predictor.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from data_shards.records.record import Record, Series, Value
from data_shards.records.schema import DatasetSchema, Kind, ModalitySpec, TaskSpec
from data_shards.records.survival import edges_from
from data_shards.sources.base import Source, SourceOptions, hashed_part
from data_shards.sources.planted import Evidence, Signal, Vocabulary, auroc, concordance, draw_lifetime

KINDS: tuple[Kind, ...] = ("series", "vector", "image", "text", "waveform")
TASKS = ("label", "positive", "score")
SHARES = (("train", 0.7), ("val", 0.1), ("test", 0.2))
HORIZON = 10.0
CHANNELS, FEATURES, SIDE, SAMPLES, WORDS = 4, 16, 8, 64, 20
_UNIT_RECORDS = 250
_SCORED = 5000  # records that the best score is computed on, at most


class SyntheticOptions(SourceOptions):
    """Options of this source."""

    modalities: str = Field(
        "series:2,vector:1,image:1,text:1,waveform:1", description="kind:number, separated by commas"
    )
    records: int = Field(2000, ge=1, description="number of records")
    classes: int = Field(4, ge=2, le=1000, description="number of classes")
    missing: float = Field(0.3, ge=0, lt=1, description="probability that a modality is missing, each on its own")
    irregularity: float = Field(1.0, ge=0, le=1, description="0: series on a regular grid, 1: at random times")
    events: float = Field(12.0, ge=1, description="mean number of events per channel of a series")
    noise: float = Field(2.0, gt=0, description="noise; 1 is easy, 4 is hard")
    intervals: int = Field(
        0, ge=0, le=1000, description="a survival task `lifetime` in so many intervals, hazards grow with exp(score)"
    )
    seed: int = Field(0, description="seed of templates and records")

    @field_validator("modalities")
    @classmethod
    def _kinds(cls, text: str) -> str:
        _parse_kinds(text)
        return text


class Synthetic(Source):
    """Planted records; see the module's text."""

    Options: ClassVar[type[SourceOptions]] = SyntheticOptions

    def __init__(self, options: SyntheticOptions) -> None:
        super().__init__(options)
        self.o = options
        self.kinds = _parse_kinds(options.modalities)
        self.schema = _schema(self.kinds, options.classes, self._edges() if options.intervals else ())
        self.models = [self._model(name, kind) for name, kind in self.kinds.items()]

    def units(self) -> list[tuple[int, int]]:
        """[start, end) record numbers."""
        count = self.o.records
        return [(start, min(start + _UNIT_RECORDS, count)) for start in range(0, count, _UNIT_RECORDS)]

    def read(self, unit: tuple[int, int], notes: Counter[str]) -> Iterator[Record]:
        """Records of one unit; ``notes`` counts missing modalities."""
        for number in range(*unit):
            record, absent = self._record(number)
            notes["missing_modalities"] += absent
            yield record

    def report(self, notes: Counter[str]) -> dict[str, Any]:
        """With ``best_score``: task -> scores of the optimal predictor on the test part (drawn anew, at most 5,000)."""
        scored: list[Record] = []
        for number in range(self.o.records):
            if len(scored) == _SCORED:
                break
            if hashed_part(_key(number), SHARES, str(self.o.seed)) == "test":
                scored.append(self._record(number)[0])
        return super().report(notes) | {"best_score": self.best_score(scored), "best_score_records": len(scored)}

    def evidence(self, record: Record) -> Evidence:
        """What the record's present modalities tell; uses nothing but the record."""
        zero = np.zeros(self.o.classes)
        total = Evidence(zero, zero, 0.0, zero)
        for (name, kind), model in zip(self.kinds.items(), self.models, strict=True):
            value = record.values.get(name)
            if isinstance(value, str) and isinstance(model, Vocabulary):
                total += model.evidence(value)
            elif value is not None and isinstance(model, Signal):
                total += model.evidence(*_points(kind, value))
        return total

    def best_score(self, records: list[Record]) -> dict[str, dict[str, float]]:
        """Scores of the optimal predictor on the given records; task -> metric -> value. Empty without records.

        ``expected_accuracy`` is the mean posterior of the predicted class: what accuracy is on average over the labels.
        """
        if not records:
            return {}
        found = [self.evidence(record) for record in records]
        posterior = np.stack([e.class_posterior() for e in found])
        label, positive, score = (np.array([r.targets[t] for r in records], float) for t in TASKS)
        accuracy = float((posterior.argmax(1) == label).mean())
        guess = np.array([e.score_mean() for e in found])
        error = float(((guess - score) ** 2).mean())
        area = auroc(np.array([e.positive_probability() for e in found]), positive)
        scores = {
            "label": {"accuracy": accuracy, "expected_accuracy": float(posterior.max(1).mean())},
            "positive": {"auroc": area} if np.isfinite(area) else {},
            "score": {"rmse": error**0.5},
        }
        if self.o.intervals:
            life = np.array([r.targets["lifetime"] for r in records], float)
            ordered = concordance(guess, life)
            scores["lifetime"] = {"concordance": ordered} if np.isfinite(ordered) else {}
        if len(records) > 1:
            scores["score"]["r2"] = 1 - error / float(score.var())
        return scores

    def _edges(self) -> tuple[float, ...]:
        """From as many lives as there would be records, which are no records'."""
        rng = self._rng("edges")
        time, seen = np.stack([draw_lifetime(rng, float(rng.standard_normal())) for _ in range(_SCORED)], axis=1)
        return edges_from(time, seen, self.o.intervals)

    def _rng(self, *key: object) -> np.random.Generator:
        digest = hashlib.blake2b(repr((self.o.seed, *key)).encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, "<u8").astype(np.uint64)))

    def _model(self, name: str, kind: Kind) -> Signal | Vocabulary:
        rng, classes, noise = self._rng("model", name), self.o.classes, self.o.noise
        if kind == "text":
            return Vocabulary(rng, classes, WORDS, noise)
        shapes = {
            "series": (CHANNELS, CHANNELS * self.o.events),
            "vector": (FEATURES, FEATURES),
            "image": (SIDE, SIDE * SIDE),
            "waveform": (2, 2 * SAMPLES),
        }
        return Signal(rng, classes, *shapes[kind], noise)

    def _record(self, number: int) -> tuple[Record, int]:
        rng = self._rng("record", number)
        label, score = int(rng.integers(self.o.classes)), float(rng.standard_normal())
        keep = rng.random(len(self.kinds)) >= self.o.missing
        if not keep.any():
            keep[rng.integers(len(keep))] = True
        values: dict[str, Series | np.ndarray | str] = {}
        for (name, kind), model, there in zip(self.kinds.items(), self.models, keep, strict=True):
            if there:
                values[name] = self._value(rng, kind, model, label, score)
        targets: dict[str, np.ndarray | float | None] = {
            "label": float(label),
            "positive": float(score > 0),
            "score": score,
        }
        if self.o.intervals:
            # Of its own generator, so that all else is as without it.
            targets["lifetime"] = draw_lifetime(self._rng("lifetime", number), score)
        key = _key(number)
        part = hashed_part(key, SHARES, str(self.o.seed))
        return Record(key, values, targets, {"default": part}), int((~keep).sum())

    def _value(
        self, rng: np.random.Generator, kind: Kind, model: Signal | Vocabulary, label: int, score: float
    ) -> Series | np.ndarray | str:
        if isinstance(model, Vocabulary):
            return model.draw(rng, label)
        if kind == "series":
            time, channel = self._events(rng)
            return Series(time, channel, model.draw(rng, label, score, time / HORIZON, channel))
        shape: tuple[int, ...]
        if kind == "waveform":
            shape = (int(rng.integers(SAMPLES // 2, 3 * SAMPLES // 2)), 2)
        else:
            shape = (1, SIDE, SIDE) if kind == "image" else (FEATURES,)
        _, place, channel = _points(kind, np.empty(shape, np.float32))
        return model.draw(rng, label, score, place, channel).reshape(shape)

    def _events(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(float32 times, channels): a Poisson number of events per channel, between grid and random times."""
        times, channels = [], []
        for channel, count in enumerate(rng.poisson(self.o.events, CHANNELS).tolist()):
            grid = (np.arange(count) + 0.5) / max(count, 1)
            mixed = (1 - self.o.irregularity) * grid + self.o.irregularity * rng.random(count)
            times.append(HORIZON * mixed)
            channels.append(np.full(count, channel))
        return np.concatenate(times).astype(np.float32), np.concatenate(channels)


def _points(kind: Kind, value: Value) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values, places in [0, 1], channels) of a numeric modality, flattened."""
    if isinstance(value, Series):
        return value.values_O, value.times_O / HORIZON, value.channels_O
    assert isinstance(value, np.ndarray), "texts have no points"
    if kind == "vector":
        return value, np.zeros(len(value)), np.arange(len(value))
    if kind == "image":  # rows are channels, columns are places
        row, column = np.indices((SIDE, SIDE)).reshape(2, -1)
        return value.ravel(), column / SIDE, row
    sample, channel = np.indices(value.shape).reshape(2, -1)
    return value.ravel(), sample / SAMPLES, channel


def _key(number: int) -> str:
    return f"s{number:08d}"


def _parse_kinds(text: str) -> dict[str, Kind]:
    """Modality name -> kind from ``series:2,text:1``; ValueError for anything else."""
    names: dict[str, Kind] = {}
    for piece in text.split(","):
        word, _, count = piece.strip().partition(":")
        kind = next((k for k in KINDS if k == word), None)
        if kind is None or not (count or "1").isdigit():
            raise ValueError(f"{piece.strip()!r} is not kind:number with a kind out of {', '.join(KINDS)}")
        start = sum(known == kind for known in names.values())
        names |= {f"{kind}_{start + i}": kind for i in range(int(count or 1))}
    if not names:
        raise ValueError("at least one modality is needed")
    return names


def _schema(kinds: dict[str, Kind], classes: int, edges: tuple[float, ...]) -> DatasetSchema:
    fields: dict[Kind, dict[str, Any]] = {
        "series": {"channels": tuple(f"c{i}" for i in range(CHANNELS)), "time_unit": "hours", "horizon": HORIZON},
        "vector": {"shape": (FEATURES,)},
        "image": {"shape": (1, SIDE, SIDE), "dtype": "float32"},
        "text": {"max_length": 4096},
        "waveform": {"shape": (2,), "rate": float(SAMPLES), "max_length": 2 * SAMPLES},
    }
    modalities = tuple(ModalitySpec(name, kind, **fields[kind]) for name, kind in kinds.items())
    tasks: tuple[TaskSpec, ...] = (
        TaskSpec(TASKS[0], "multiclass", classes=tuple(f"class_{k}" for k in range(classes))),
        TaskSpec(TASKS[1], "binary"),
        TaskSpec(TASKS[2], "regression", dim=1),
    )
    if edges:
        tasks += (TaskSpec("lifetime", "survival", edges=edges, unit="years"),)
    return DatasetSchema("synthetic", modalities, tasks)
