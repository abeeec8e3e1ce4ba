"""What a job's result says of MLflow: the run's id and that everything is there, or in words what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.ports import free_port
from tests.ranks import run_ranks
from tests.trainer.jobs.test_train import FixedContext
from tests.trainer.tiny import config, packed
from trainer.config.run_config import RunConfig
from trainer.jobs.job import run
from trainer.run_folder import metric_lines


def _late_mlflow(rank: int, world: int, tree: dict[str, Any]) -> dict[str, Any]:
    """A job whose steps are over before MLflow has opened."""
    import time

    from trainer.tracking import mlflow_run

    real = mlflow_run.tracking_client
    mlflow_run.tracking_client = lambda uri: (time.sleep(8), real(uri))[1]
    return run(RunConfig.of(tree), FixedContext(rank, world))


def results(run_config: RunConfig, world: int = 2) -> list[dict[str, Any]]:
    return run_ranks(_late_mlflow, world, run_config.model_dump(mode="json"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("data"))


def tracked(data, tmp_path, **changes):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking = {"tracking__mlflow": True, "tracking__uri": uri, "tracking__spool": str(tmp_path / "spool")}
    return config(data, tmp_path / "runs", **{**tracking, "training__epochs": 1, **changes})


@pytest.mark.long
def test_a_run_that_is_over_before_mlflow_has_started_is_there_with_every_point(data, tmp_path):
    first, second = results(tracked(data, tmp_path))
    assert first["run_id"] == second["run_id"] is not None and first["mlflow"] == second["mlflow"] == "complete"
    assert json.loads((tmp_path / "runs" / "run" / "result.json").read_text())["run_id"] == first["run_id"]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert client.get_run(first["run_id"]).info.status == "FINISHED"
    written: dict[str, list[tuple[int, float]]] = {}
    for line in metric_lines(str(tmp_path / "runs" / "run")):
        for key, value in line.get("metrics", {}).items() if "step" in line else ():
            written.setdefault(key, []).append((line["step"], value))
    assert len(written["train/loss"]) > 2 and "test/loss" in written
    assert set(client.get_run(first["run_id"]).data.metrics) == set(written)
    for key, points in written.items():
        assert [(p.step, p.value) for p in client.get_metric_history(first["run_id"], key)] == points, key


@pytest.mark.long
def test_a_run_that_did_not_reach_mlflow_says_where_its_record_waits(data, tmp_path):
    uri = f"http://127.0.0.1:{free_port()}"
    (result,) = results(tracked(data, tmp_path, tracking__uri=uri), world=1)
    assert result["status"] == "finished" and result["run_id"] is None
    assert result["mlflow"].startswith(f"waiting in {tmp_path}/spool (API request to {uri}")
    assert Path(tmp_path / "spool" / "operations.jsonl").exists()


@pytest.mark.long
def test_a_run_that_was_deleted_keeps_its_id_and_says_so(data, tmp_path):
    (first,) = results(tracked(data, tmp_path), world=1)
    MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").delete_run(first["run_id"])
    (second,) = results(tracked(data, tmp_path, training__epochs=2), world=1)
    assert second["run_id"] == first["run_id"] and second["step"] > first["step"]
    assert second["mlflow"].startswith(
        f"waiting in {tmp_path}/spool (MLflow run {first['run_id']} (run) was deleted at "
    )


def test_a_run_without_mlflow_says_off(data, tmp_path):
    (result,) = results(tracked(data, tmp_path, tracking__mlflow=False), world=1)
    assert result["run_id"] is None and result["mlflow"] == "off"
