"""Runs that were continued with other values, or are not finished, in a real MLflow: told apart, and said so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from launch.compare.comparison import compare
from launch.compare.report import page
from trainer.config.sections import TrackingConfig
from trainer.tracking.create import create_tracker
from trainer.tracking.history import TrackedRun, find_runs

FIRST = {"dataset": {"digest": "d"}, "training": {"seed": 0, "storage": "runs"}, "optim": {"lr": 0.1, "eps": 1e-8}}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrackedRun]:
    """Five runs of one recipe, of which all but the first were continued: with what, the test says."""
    folder = tmp_path_factory.mktemp("continued")
    uri = f"sqlite:///{folder}/mlflow.db"
    config = TrackingConfig(uri=uri, experiment="here", spool=str(folder / "spool"))

    def log(name: str, step: int, accuracy: float, status: str = "FINISHED", **changes: Any) -> None:
        tracker = create_tracker(config, name, None, {}, 0, str(folder / name))
        tracker.log_params({**FIRST, **changes})
        tracker.log_metrics({"test/accuracy": accuracy}, step)
        tracker.finish(status)

    faster = {"optim": {"lr": 0.5, "eps": 1e-8}}
    for number, name in enumerate(("whole", "faster", "back", "moved", "killed")):
        log(name, 10, 0.5 + number / 100)
    log("faster", 20, 0.75, **faster, training={"seed": 3, "storage": "runs"})
    log("back", 20, 0.6, **faster)
    log("back", 30, 0.65)
    log("moved", 20, 0.625, training={"seed": 0, "storage": "elsewhere"})
    log("killed", 10, 0.54)  # nothing is new: these figures are those of step 10
    client = MlflowClient(uri)
    runs = {run.name: run for run in find_runs(uri, [], "here")}
    client.update_run(runs["killed"].id, status="RUNNING")
    return {run.name: run for run in find_runs(uri, [], "here")}


def test_the_later_values_tell_variants_apart_and_are_named(found: dict[str, TrackedRun]) -> None:
    run = found["faster"]
    assert run.params["optim.lr"] == "0.5" and run.first_params == {"optim.lr": "0.1", "training.seed": "0"}
    assert found["whole"].first_params == {}
    result = compare([found["whole"], run])
    assert [(variant.label, variant.values("test/accuracy")) for variant in result.variants] == [
        ("lr=0.5", [0.75]),
        ("lr=0.1", [0.5]),
    ]
    assert result.differing == {"optim.lr": ["0.1", "0.5"], "training.seed": ["0", "3"]}
    said = (
        "Run faster was continued with other values, of which the last count: optim.lr 0.1 -> 0.5, "
        "training.seed 0 -> 3."
    )
    assert [note for note in result.notes if "continued" in note] == [said]
    assert said.replace(">", "&gt;") in page(result)


def test_values_that_came_back_are_said_and_those_that_never_matter_are_not(found: dict[str, TrackedRun]) -> None:
    result = compare([found["whole"], found["back"], found["moved"]])
    assert len(result.variants) == 1 and found["moved"].params["training.storage"] == "elsewhere"
    assert [note for note in result.notes if "continued" in note] == [
        "Run back was continued with other values, of which the last count: optim.lr 0.1 -> other values -> 0.1."
    ]


@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "KILLED", "FINISHED"])
def test_a_run_that_has_not_finished_is_named(found: dict[str, TrackedRun], status: str) -> None:
    run = found["killed"]
    MlflowClient(run.uri).update_run(run.id, status=status)
    (again,) = find_runs(run.uri, [run.id], None)
    notes = [note for note in compare([found["back"], again]).notes if "finished" in note]
    said = f"Run killed ({status}) has not finished: its figures are of step 10."
    assert notes == ([] if status == "FINISHED" else [said])


def test_a_text_longer_than_a_parameter_equals_itself(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    config = TrackingConfig(uri=uri, experiment="here", spool=str(tmp_path / "spool"))
    for name, texts in (("a", ["x" * 7000]), ("b", ["y", "x" * 7000])):
        for step, text in enumerate(texts):
            tracker = create_tracker(config, name, None, {}, 0, str(tmp_path / name))
            tracker.log_params({"list": text})
            tracker.log_metrics({"test/accuracy": 0.5}, step)
            tracker.finish("FINISHED")
    first, second = find_runs(uri, [], "here")
    assert first.params["list"] == second.params["list"] == "x" * 6000
    assert len(compare([first, second]).variants) == 1
