"""A baseline as a command makes it: a run in MLflow that `compare` takes, and files that say the same again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_shards import DatasetSchema, ModalitySpec, Record, TaskSpec, open_manifest, pack
from launch.compare.comparison import compare
from launch.errors import UsageError
from launch.runs.baseline import learn_baseline
from tests.data_shards.build import ListSource
from trainer.baseline.features.table import read_table
from trainer.baseline.learners import families
from trainer.baseline.learners.trees import TreeSetting
from trainer.baseline.stored import is_baseline, read_baseline
from trainer.metrics.prediction_table import read_predictions
from trainer.tracking.history import find_runs

SCHEMA = DatasetSchema(
    "few",
    (ModalitySpec("age", "vector", shape=(3,)), ModalitySpec("note", "text")),
    (TaskSpec("died", "binary"), TaskSpec("days", "regression", unit="days")),
)


def records() -> list[Record]:
    """`died` is whether the first number is positive, and a word says it too; half of the records have the word."""
    made = []
    for number in range(150):
        rng = np.random.default_rng(number)
        age = rng.normal(size=3).astype(np.float32)
        values: dict[str, Any] = {"age": age} | ({"note": "well" if age[0] > 0 else "ill"} if number % 2 else {})
        part = "test" if number % 5 == 4 else "val" if number % 5 == 3 else "train"
        targets: dict[str, Any] = {"died": float(age[0] > 0), "days": 3 + 2 * age[1]}
        made.append(Record(f"r{number:03d}", values, targets, {"default": part}))
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and the runs `b-trees` and `b-linear`."""
    folder = tmp_path_factory.mktemp("baseline")
    pack(ListSource(SCHEMA, records()), str(folder / "data"), workers=1)
    few = tuple(
        dataclasses.replace(own, iterations=20, rate=0.3, least=5) for own in (TreeSetting(), TreeSetting(leaves=4))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "SETTINGS", few)
        changes = ["name=b", f"training.storage={folder}/runs", "tracking.mlflow=false"]
        learn_baseline(str(folder / "data"), "default", "both", changes)
    return folder


def result(place: Path, family: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "runs" / f"b-{family}" / "result.json").read_text())
    return found


def test_both_families_learn_both_tasks(place: Path) -> None:
    for family in ("trees", "linear"):
        own = result(place, family)
        assert own["status"] == "finished" and own["mlflow"] == "off" and own["notes"] == []
        assert own["metrics"]["test/died/auroc"] > 0.95 and own["metrics"]["test/days/r2"] > 0.5
        assert own["metrics"]["test/records"] == own["metrics"]["val/records"] == 30
    trees, linear = (result(place, family)["chosen"]["died"][0] for family in ("trees", "linear"))
    assert trees["leaves"] in (12, 4) and 1 <= trees["iterations"] <= 20 and trees["forests"] == 3
    assert linear["penalty"] in (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


def test_what_is_kept_says_the_same_again(place: Path) -> None:
    manifest = open_manifest(str(place / "data"))
    for family in ("trees", "linear"):
        run = place / "runs" / f"b-{family}"
        baseline = read_baseline(str(run))
        assert is_baseline(str(run)) and baseline.family == family and baseline.about["data_digest"] == manifest.digest
        table = read_table(manifest, config(place), "test", baseline.layout).of_columns(baseline.column_X)
        again = baseline.predictions(table)
        tasks, kept = read_predictions(run / "predictions" / "test.parquet")
        assert [task.name for task in tasks] == ["died", "days"] and kept.index_B.tolist() == again.index_B.tolist()
        assert kept.index_B.tolist() == list(range(4, 150, 5))
        for name in ("died", "days"):
            torch.testing.assert_close(kept.logits[name], again.logits[name], rtol=0, atol=0)


def config(place: Path) -> Any:
    from data_shards import DataConfig

    return DataConfig(url=str(place / "data"))


@pytest.mark.long
def test_compare_takes_them_as_runs(place: Path, tmp_path: Path) -> None:
    data, storage = str(place / "data"), f"training.storage={tmp_path}/runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "SETTINGS", (TreeSetting(iterations=20, rate=0.3, least=5),))
        learn_baseline(data, "default", "both", ["name=b", storage])
    own = {family: result(tmp_path, family) for family in ("trees", "linear")}
    assert {one["mlflow"] for one in own.values()} == {"complete"}
    runs = find_runs(None, [str(tmp_path / "runs" / f"b-{family}") for family in own], None)
    assert [run.name for run in runs] == ["b-trees", "b-linear"]
    assert {run.params["job"] for run in runs} == {"baseline"} and runs[0].params["baseline.family"] == "trees"
    assert runs[0].params["data.split"] == "default" and runs[0].metrics["test/died/auroc"] > 0.95
    found = compare(runs, "died/auroc")
    assert found.comparable and len(found.pairs) == 1 and found.pairs[0].records is not None
    measured = {family: own[family]["metrics"]["test/died/auroc"] for family in own}
    assert abs(found.pairs[0].records.value) == pytest.approx(abs(measured["trees"] - measured["linear"]), abs=1e-6)


def test_a_name_is_used_once(place: Path) -> None:
    with pytest.raises(UsageError, match="a baseline is learned at once: give another name="):
        learn_baseline(str(place / "data"), "default", "linear", ["name=b", f"training.storage={place}/runs"])


def test_what_cannot_be_is_said(place: Path, tmp_path: Path) -> None:
    data, storage = str(place / "data"), f"training.storage={tmp_path}"
    with pytest.raises(UsageError, match="there is no family bushes; there are trees, linear and both"):
        learn_baseline(data, "default", "bushes", [storage])
    with pytest.raises(ValueError, match="wards"):
        learn_baseline(data, "wards", "linear", [storage])
    only = [dataclasses.replace(record, splits={"default": "train"}) for record in records()[:20]]
    pack(ListSource(SCHEMA, only), str(tmp_path / "only"), workers=1)
    with pytest.raises(ValueError, match="has no part val, which a baseline is chosen by"):
        learn_baseline(str(tmp_path / "only"), "default", "linear", [storage])
    with pytest.raises(ValueError, match="holds no baseline"):
        read_baseline(str(tmp_path))
