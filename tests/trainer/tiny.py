"""A small data set with every kind of modality, any subset present, every kind of task, some labels missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_shards import DatasetSchema, ModalitySpec, Record, Series, TaskSpec, pack
from data_shards.sources.base import Source, SourceOptions
from trainer.checkpoints.find import open_checkpoint
from trainer.config.run_config import RunConfig
from trainer.inference.predictor import Predictor
from trainer.inference.request import Request

SCHEMA = DatasetSchema(
    "tiny",
    (
        ModalitySpec("lab", "series", channels=("a", "b", "c"), time_unit="hours", horizon=10.0),
        ModalitySpec("vital", "series", channels=("x",), time_unit="hours", horizon=5.0),
        ModalitySpec("age", "vector", shape=(3,)),
        ModalitySpec("score", "vector", shape=(3,)),
        ModalitySpec("scan", "image", shape=(1, 4, 4), dtype="uint8"),
        ModalitySpec("note", "text", max_length=24),
        ModalitySpec("ecg", "waveform", shape=(2,), rate=10.0, max_length=40),
    ),
    (
        TaskSpec("died", "binary"),
        TaskSpec("kind", "multiclass", classes=("u", "v", "w")),
        TaskSpec("codes", "multilabel", classes=("p", "q")),
        TaskSpec("days", "regression", unit="days"),
    ),
)


class TinyOptions(SourceOptions):
    """How many records, and from which seed."""

    records: int = 48
    seed: int = 0
    missing: float = 0.3


class Tiny(Source):
    """Random records whose tasks depend on a hidden number that every modality shows."""

    Options = TinyOptions
    schema = SCHEMA

    def units(self) -> Sequence[Any]:
        return range(self.options.records)  # type: ignore[attr-defined]

    def read(self, unit: Any, notes: Counter[str]) -> Iterator[Record]:
        options: TinyOptions = self.options  # type: ignore[assignment]
        rng = np.random.default_rng([options.seed, unit])
        z = rng.normal()
        values: dict[str, Any] = {
            "lab": series(rng, 3, 10.0, z),
            "vital": series(rng, 1, 5.0, z),
            "age": (rng.normal(size=3) + z).astype(np.float32),
            "score": (rng.normal(size=3) - z).astype(np.float32),
            "scan": np.clip(128 + 40 * z + rng.normal(size=(1, 4, 4)) * 10, 0, 255).astype(np.uint8),
            "note": "high text" if z > 0 else "low",
            "ecg": (rng.normal(size=(int(rng.integers(1, 40)), 2)) * (1 + abs(z))).astype(np.float32),
        }
        kept = rng.random(len(values)) >= options.missing
        kept[rng.integers(len(values))] = True
        targets: dict[str, Any] = {
            "died": float(z > 0),
            "kind": float(np.digitize(z, [-0.5, 0.5])),
            "codes": np.array([z > 0, np.nan if unit % 5 == 0 else float(z < 1)], np.float32),
            "days": None if unit % 7 == 0 else 5 + 2 * z,
        }
        part = "test" if unit % 6 == 5 else "val" if unit % 6 == 4 else "train"
        present = {name: value for (name, value), keep in zip(values.items(), kept, strict=True) if keep}
        yield Record(f"r{unit:04d}", present, targets, {"default": part})


class Reordered(Tiny):
    """The same records, with modalities, tasks, and the channels of `lab` in the opposite order."""

    schema = DatasetSchema(
        "tiny",
        tuple(replace(spec, channels=spec.channels[::-1]) for spec in SCHEMA.modalities[::-1]),
        SCHEMA.tasks[::-1],
    )

    def read(self, unit: Any, notes: Counter[str]) -> Iterator[Record]:
        for record in super().read(unit, notes):
            for name, value in record.values.items():
                if isinstance(value, Series):
                    last = len(SCHEMA.modalities[SCHEMA.numbers[name]].channels) - 1
                    record.values[name] = Series(value.times_O, last - value.channels_O, value.values_O)
            yield record


def series(rng: np.random.Generator, channels: int, horizon: float, z: float) -> Series:
    """Irregular events, sometimes none."""
    n = int(rng.integers(0, 12))
    return Series(
        rng.uniform(0, horizon, n).astype(np.float32),
        rng.integers(0, channels, n),
        (rng.normal(size=n) + z).astype(np.float32),
    )


def packed(folder: Path, **options: Any) -> str:
    """Pack the data set into `folder` and return its path."""
    pack(Tiny(TinyOptions(**options)), str(folder), chunk_records=6)
    return str(folder)


def config(data: str, storage: Path, **changes: Any) -> RunConfig:
    """A small run; `changes` are dotted keys with underscores doubled, e.g. `model__moe__gate="softmax"`."""
    tree: dict[str, Any] = {
        "name": "run",
        "data": {"url": data},
        "model": {
            "dim": 16,
            "layers": 2,
            "heads": 2,
            "bins": 4,
            "attention": "joint",
            "dropout": 0.1,
            "image": {"patch": 2},
            "text": {"heads": 2},
            "waveform": {"patch": 4, "tokens": 3},
            "moe": {
                "experts": 4,
                "top_k": 2,
                "hidden": 16,
                "entropy": 0.01,
                "z": 0.001,
                "noise": 0.1,
                "bias_rate": 0.01,
            },
        },
        "optim": {"lr": 0.01},
        "training": {
            "epochs": 2,
            "batch_size": 8,
            "log_every": 1,
            "storage": str(storage),
            "early_stopping": {"metric": "val/loss"},
        },
        "tracking": {"mlflow": False},
    }
    return changed(tree, changes)


def changed(tree: dict[str, Any], changes: dict[str, Any]) -> RunConfig:
    """The run of a recipe's tree with `changes`, as `config` takes them."""
    for key, value in changes.items():
        *path, last = key.split("__")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return RunConfig.model_validate(tree)


def predictor_of(request: Request) -> Predictor:
    """The predictor of a request, as a command makes it."""
    return Predictor(request, open_checkpoint(request.checkpoint))
