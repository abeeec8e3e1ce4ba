"""Modalities, channels and tasks in another order are found by their names: the same batches, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards import DatasetSchema, ModalitySpec, Record, Series, StepLoader, TaskSpec, open_manifest, pack
from data_shards.config import DataConfig
from data_shards.loading.schema_map import channel_places, place_of, statistics_in
from tests.data_shards.build import ListSource

SCHEMA = DatasetSchema(
    "everything",
    (
        ModalitySpec("labs", "series", channels=("a", "b", "c"), units=("x", "y", "z"), horizon=48.0),
        ModalitySpec("note", "text", max_length=40),
        ModalitySpec("static", "vector", shape=(3,), channels=("p", "q", "r")),
        ModalitySpec("picture", "image", shape=(2, 2, 3), dtype="uint8", channels=("red", "green")),
        ModalitySpec("ecg", "waveform", shape=(2,), rate=10.0, max_length=9, channels=("I", "II")),
        ModalitySpec("vitals", "series", channels=("hr", "bp"), horizon=48.0),
        ModalitySpec("other", "vector", shape=(3,)),
        ModalitySpec("wide", "vector", shape=(4,), channels=("k", "l", "m", "n")),
    ),
    (
        TaskSpec("death", "binary"),
        TaskSpec("codes", "multilabel", classes=("p", "q")),
        TaskSpec("stay", "regression", unit="days"),
    ),
)


def shuffled(rng: np.random.Generator) -> tuple[DatasetSchema, dict[str, np.ndarray]]:
    """The schema in another order; name -> for each new channel the old one."""
    modalities, moved = [], {}
    for n in rng.permutation(len(SCHEMA.modalities)).tolist():
        spec = SCHEMA.modalities[n]
        order = rng.permutation(len(spec.channels))
        moved[spec.name] = order
        names = {
            field: tuple(getattr(spec, field)[c] for c in order)
            for field in ("channels", "units")[: 1 + bool(spec.units)]
        }
        modalities.append(replace(spec, **names))
    tasks = [SCHEMA.tasks[n] for n in rng.permutation(len(SCHEMA.tasks)).tolist()]
    return DatasetSchema("everything", tuple(modalities), tuple(tasks)), moved


def record(number: int, moved: dict[str, np.ndarray] | None) -> Record:
    """Made-up values; `moved`: as the same source would give them with channels in another order."""
    rng = np.random.default_rng(number)

    def series(name: str, channels: int) -> Series:
        n = int(rng.integers(0, 9))
        # Several observations at one time.
        times, channel_n = rng.integers(0, 4, n).astype(np.float32), rng.integers(0, channels, n)
        values = rng.normal(size=n).astype(np.float32)
        place = np.argsort(moved[name]) if moved else np.arange(channels)
        return Series(times, place[channel_n], values)

    def along(name: str, array: np.ndarray, axis: int) -> np.ndarray:
        return np.take(array, moved[name], axis) if moved and len(moved[name]) else array

    values = {
        "labs": series("labs", 3),
        "note": "word " * int(rng.integers(1, 6)),
        "static": along("static", rng.normal(size=3).astype(np.float32), 0),
        "picture": along("picture", rng.integers(0, 255, (2, 2, 3), dtype=np.uint8), 0),
        "ecg": along("ecg", rng.normal(size=(int(rng.integers(1, 9)), 2)).astype(np.float32), 1),
        "vitals": series("vitals", 2),
        "other": rng.normal(size=3).astype(np.float32),
        "wide": along("wide", rng.normal(size=4).astype(np.float32), 0),
    }
    kept = rng.random(len(values)) < 0.6
    kept[rng.integers(len(values))] = True
    present = {name: value for (name, value), keep in zip(values.items(), kept, strict=True) if keep}
    codes = np.array([1.0, np.nan if number % 3 else 0.0], np.float32)
    targets = {"death": float(number % 2), "codes": codes, "stay": None if number % 4 else 2.5}
    return Record(f"r{number:03d}", present, targets, {"default": "train"})


def batches(folder: Path, schema: DatasetSchema | None) -> list[dict[str, torch.Tensor]]:
    manifest = open_manifest(str(folder))
    loader = StepLoader(manifest, DataConfig(url=str(folder)), "train", 7, shuffle=False, schema=schema)
    return [batch.to_buffer() for step in loader.steps(0) for batch in step.micro_batches]  # type: ignore[misc]


@pytest.mark.parametrize("seed", range(6))
def test_batches_are_the_same_to_the_last_bit(tmp_path: Path, seed: int) -> None:
    schema, moved = shuffled(np.random.default_rng(seed))
    pack(ListSource(SCHEMA, [record(n, None) for n in range(40)]), str(tmp_path / "own"), chunk_records=9)
    pack(ListSource(schema, [record(n, moved) for n in range(40)]), str(tmp_path / "other"), chunk_records=9)
    expected, found = batches(tmp_path / "own", None), batches(tmp_path / "other", SCHEMA)
    assert len(expected) == 6
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    unmapped = batches(tmp_path / "other", None)
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(expected, unmapped, strict=True))
    own, other = (open_manifest(str(tmp_path / name)).statistics["default"] for name in ("own", "other"))
    ordered = statistics_in(other, schema, SCHEMA).modalities
    for name, table in own.modalities.items():
        assert ordered[name].count == table.count
        for field in ("mean", "std", "min", "max"):
            assert getattr(ordered[name], field) == pytest.approx(getattr(table, field), rel=1e-12)


def test_where_nothing_moved_records_are_left_alone() -> None:
    place = place_of(SCHEMA, SCHEMA)
    assert place.same and place.put("anything") == "anything"  # type: ignore[arg-type, comparison-overlap]


def test_other_channels_are_refused() -> None:
    spec = SCHEMA.modalities[0]
    with pytest.raises(ValueError, match=r"modality labs has the channels a, b, d, and labs has a, b, c"):
        channel_places(replace(spec, channels=("a", "b", "d")), spec)


def test_words_for_people_do_not_make_another_task() -> None:
    told = replace(SCHEMA, tasks=(replace(SCHEMA.tasks[0], description="in hospital"), *SCHEMA.tasks[1:]))
    own, whole = place_of(told, SCHEMA).columns
    assert own.tolist() == whole.tolist() == [0, 1, 2, 3]
    other = replace(SCHEMA, tasks=(replace(SCHEMA.tasks[2], unit="hours"),))
    assert place_of(other, SCHEMA).columns[0].tolist() == [], "days and hours are two questions"
