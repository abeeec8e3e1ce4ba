"""One training on a local Ray and under torchrun: same numbers, one MLflow run, nothing left."""

from __future__ import annotations

import json
import subprocess

import pytest
from mlflow import MlflowClient

from tests.launch.commands import (
    ROOT,
    SAME,
    STEPS,
    environment,
    last_json,
    logged,
    overrides,
    processes_with,
    python,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def on_local_ray(place):
    scratch = place / "scratch"
    scratch.mkdir()
    arguments = overrides(place, "local")
    done = python("-m", "launch", "train", "synthetic_small", *arguments, env=environment(TMPDIR=str(scratch)))
    return done, scratch


def test_local_ray_trains_prints_and_leaves_nothing(on_local_ray, place):
    done, scratch = on_local_ray
    result = last_json(done)
    assert (result["status"], result["step"]) == ("finished", STEPS)
    assert {"test/label/accuracy", "test/loss"} <= set(result["metrics"]) and result["seconds"] > 0
    assert len(done.stdout.strip().splitlines()) == 1
    assert f"step {STEPS}/{STEPS}" in done.stderr and "started a local Ray" in done.stderr
    assert "rank 0 cpu experts 0-1, rank 1 cpu experts 2-3" in done.stderr
    assert "RayTrainWorker" not in done.stderr and "Traceback" not in done.stderr
    assert list(scratch.glob("ray_*")) == [] and processes_with(str(scratch)) == []


def test_local_ray_is_one_finished_mlflow_run(on_local_ray, place):
    result = last_json(on_local_ray[0])
    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    run = client.get_run(result["run_id"])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "local")
    assert run.data.params["parallel.workers"] == "2" and run.data.params["model.moe.experts"] == "4"
    assert [point.step for point in client.get_metric_history(result["run_id"], "train/loss")] == list(
        range(1, STEPS + 1)
    )
    assert run.data.metrics["test/loss"] == pytest.approx(result["metrics"]["test/loss"])
    assert run.inputs.dataset_inputs
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert run.data.tags.get("git.commit", "") == commit


def test_torchrun_and_local_ray_give_the_same_numbers(under_torchrun, on_local_ray, place):
    ours, reference = logged(place / "runs" / "local", *SAME), logged(place / "runs" / "torchrun", *SAME)
    assert sorted(ours) == list(range(1, STEPS + 1))
    for step, values in reference.items():
        assert ours[step] == pytest.approx(values, rel=1e-6), f"step {step}"
    assert last_json(on_local_ray[0])["metrics"] == pytest.approx(under_torchrun["metrics"], rel=1e-6)


def test_evaluate_reproduces_the_test_metrics_and_hides_modalities(on_local_ray, place):
    result = last_json(on_local_ray[0])
    again = last_json(python("-m", "launch", "evaluate", result["checkpoint"]))
    assert again["metrics"] == pytest.approx(result["metrics"], rel=1e-6)
    modality = json.loads(python("-m", "launch", "inspect", str(place / "data"), "--json").stdout)["modalities"][0][
        "name"
    ]
    without = last_json(python("-m", "launch", "evaluate", str(place / "runs" / "local"), "--drop", modality))
    assert without["metrics"]["test/loss"] != again["metrics"]["test/loss"]
    assert without["metrics"]["test/records"] == again["metrics"]["test/records"]


@pytest.mark.long
def test_a_workers_mistake_is_one_sentence_without_a_second_attempt(place):
    done = python("-m", "launch", "train", "synthetic_small", *overrides(place, "wrong", model__image__patch=5))
    assert done.returncode == 1 and done.stdout == "" and "attempt 2" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: model.image.patch = 5 must divide")
    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    run_id = json.loads((place / "runs" / "wrong" / "mlflow_run.json").read_text())["run_id"]
    assert client.get_run(run_id).info.status == "FAILED"
