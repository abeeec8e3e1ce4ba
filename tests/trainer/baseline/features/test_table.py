"""Records of every kind as rows, read through the loader, against values worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards import (
    Codes,
    DataConfig,
    DatasetSchema,
    Manifest,
    ModalitySpec,
    Objects,
    Record,
    Series,
    TaskSpec,
    open_manifest,
    pack,
)
from tests.data_shards.build import ListSource
from trainer.baseline.features import table as tables
from trainer.baseline.features.layout import Layout
from trainer.baseline.features.table import Table, frequent_codes, read_table, varying

NONE = float("nan")
HOURS: dict[str, Any] = {"time_unit": "hours", "horizon": 8.0}
WHOLE = DatasetSchema(
    "whole",
    (
        ModalitySpec("lab", "series", channels=("a", "b"), **HOURS),
        ModalitySpec("age", "vector", channels=("years", "sex")),
        ModalitySpec("drug", "codes", timed=True, valued=True, **HOURS),
        ModalitySpec("note", "text", timed=True, **HOURS),
        ModalitySpec("visit", "vector", shape=(1,), timed=True, **HOURS),
        ModalitySpec("scan", "image", shape=(1, 2, 2), dtype="uint8"),
        ModalitySpec("ecg", "waveform", shape=(1,), rate=1.0),
    ),
    (TaskSpec("died", "binary"),),
)


def at(*times: float) -> np.ndarray:
    return np.array(times, np.float32)


def made(folder: Path, schema: DatasetSchema, records: list[Record]) -> Manifest:
    pack(ListSource(schema, records), str(folder), workers=1)
    return open_manifest(str(folder))


def row(layout: Layout, table: Table, number: int) -> Mapping[str, float]:
    return dict(zip(layout.names, table.x_BX[number].tolist(), strict=True))


def test_a_record_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "FEWEST_RECORDS", 2)
    everything = {
        "lab": Series(at(7, 1, 2), np.array([0, 0, 1]), at(5, 3, 9)),
        "age": at(70, 1),
        "drug": Codes(["x", "y", "x", "rare"], at(1, 2, 6, 3), at(10, NONE, 30, 7)),
        "note": Objects(at(4, 2), ["warm", "cold"]),
        "visit": Objects(at(5, 3), [at(8), at(2)]),
        "scan": np.array([[[10, 20], [30, 40]]], np.uint8),
        "ecg": np.array([[1], [3]], np.float32),
    }
    empty = {
        "lab": Series(at(), np.array([], int), at()),
        "drug": Codes(["y"], at(3), at(NONE)),
        "note": Objects(at(), []),
    }
    records = [Record("r0", everything, {"died": 1.0}, {"default": "train"})]
    records.append(Record("r1", empty, {"died": None}, {"default": "train"}))
    records.append(Record("r2", {"drug": Codes(["x"], at(0), at(1))}, {"died": 0.0}, {"default": "test"}))
    records.append(Record("r3", {"drug": Codes(["x"], at(0), at(1))}, {"died": 0.0}, {"default": "train"}))
    manifest = made(tmp_path / "data", WHOLE, records)
    config = DataConfig(url=manifest.url)
    codes = frequent_codes(manifest, config)
    x, y = manifest.vocabulary("drug").ids(["x", "y"]).tolist()
    assert codes == {"drug": tuple(sorted((x, y)))}, "x and y are in two training records each, the others in one"
    layout = Layout(manifest.schema, codes)
    seen: list[tuple[int, int]] = []
    table = read_table(manifest, config, "train", layout, lambda done, total: seen.append((done, total)))
    assert len(table) == 3 and seen == [(3, 3)] and table.index_B.tolist() == [0, 1, 3] and table.moment_B is None
    np.testing.assert_array_equal(table.targets["died"][:, 0], [1, NONE, 0])
    own = row(layout, table, 0)
    wanted = {
        "lab.a.count": 2,
        "lab.a.first": 3,
        "lab.a.change": 2,
        "lab.a.late_mean": 5,
        "lab.a.early_mean": 3,
        "lab.b.mean": 9,
        "lab.b.late_mean": NONE,
        "age.years": 70,
        "drug.count": 4,
        "drug.different": 3,
        "drug.first_time": 1,
        "drug.last_time": 6,
        f"drug.code{x}.count": 2,
        f"drug.code{y}.count": 1,
        f"drug.code{x}.last": 30,
        f"drug.code{y}.last": NONE,
        "note.count": 2,
        "note.first_time": 2,
        "note.last_time": 4,
        "note.characters": 9,  # cold, a new line, warm
        "visit.count": 2,
        "visit.0.last": 8,
        "visit.0.mean": 5,
        "visit.0.min": 2,
        "scan.grey_1_0": 30,
        "ecg.0.mean": 2,
        "ecg.0.std": 1,
        "ecg.there": 1,
    }
    np.testing.assert_array_equal([own[name] for name in wanted], list(wanted.values()))
    poor = row(layout, table, 1)
    # There and never observed: counts of 0. Not there: nothing.
    wanted = {"lab.a.count": 0, "lab.b.count": 0, "lab.a.mean": NONE, "note.count": 0, "note.first_time": NONE}
    wanted |= {
        "visit.count": NONE,
        "age.years": NONE,
        "lab.there": 1,
        "note.there": 1,
        "visit.there": 0,
        "scan.there": 0,
    }
    np.testing.assert_array_equal([poor[name] for name in wanted], list(wanted.values()))
    test = row(layout, read_table(manifest, config, "test", layout), 0)
    assert test[f"drug.code{x}.last"] == 1 and test["drug.different"] == 1
    assert layout.owner_X.tolist().count(0) == 2 * 15 + 1 and len(layout.owner_X) == len(layout.names)


MOMENTS = DatasetSchema(
    "moments",
    (ModalitySpec("lab", "series", channels=("a",), **HOURS),),
    (TaskSpec("soon", "binary", timed=True, time_unit="hours"),),
)


def test_moments_are_cut_as_the_loader_cuts_them(tmp_path: Path) -> None:
    own = Series(at(1, 5, 9, 12), np.zeros(4, int), at(1, 2, 3, 4))
    record = Record("r0", {"lab": own}, {"soon": at(0, 1)}, {"default": "train"}, moments=at(6, 12))
    manifest = made(tmp_path / "data", MOMENTS, [record])
    layout = Layout(manifest.schema)
    table = read_table(manifest, DataConfig(url=manifest.url), "train", layout)
    assert table.moment_B is not None and table.moment_B.tolist() == [6, 12] and table.index_B.tolist() == [0, 0]
    assert table.targets["soon"][:, 0].tolist() == [0, 1]
    first, second = row(layout, table, 0), row(layout, table, 1)
    # Seen at 6: times 1 and 5. Seen at 12 with a window of 8: times 5, 9 and 12, and 12 stands at 8.
    assert (first["lab.a.count"], first["lab.a.last"]) == (2, 2)
    assert (second["lab.a.count"], second["lab.a.first"], second["lab.a.last_time"]) == (3, 2, 8)
    assert (second["lab.a.late_mean"], second["lab.a.early_mean"]) == (4, 2)


def test_columns_with_one_value_say_nothing() -> None:
    x_BX = np.array([[1, NONE, 3, NONE], [1, NONE, NONE, 2], [NONE, NONE, 4, 2]], np.float32)
    assert varying(x_BX).tolist() == [2]
