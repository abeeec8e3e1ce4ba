"""One training on a local Ray, as a submitted job and under torchrun: same numbers, one MLflow run, nothing left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.launch.commands import ROOT, SMALL, environment, last_json, logged, python
from tests.ranks import free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BIN = Path(sys.executable).parent
STEPS = 8
SAME = ("train/loss", "train/grad_norm")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a packed data set; the path is short because sockets are put below it."""
    folder = Path(tempfile.mkdtemp(prefix="t"))
    options = ["-o", "records=250", "-o", "modalities=series:1,vector:1,image:1", "--workers", "1"]
    last_json(python("-m", "launch", "pack", "synthetic", "--out", str(folder / "data"), *options))
    yield folder
    shutil.rmtree(folder)


def overrides(place: Path, name: str, **changes: object) -> list[str]:
    """A run that ends after STEPS steps and whose first steps do not depend on when it ends."""
    settings = {
        "name": name,
        "data.url": place / "data",
        "training.storage": place / "runs",
        "training.max_steps": STEPS,
        "training.eval_every": 4,
        "optim.schedule": "constant",
        "optim.warmup": 0,
    }
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    return [*SMALL, *(f"{key}={value}" for key, value in {**settings, **changed}.items())]


@pytest.fixture(scope="module")
def under_torchrun(place):
    """The reference: the same run with no Ray in any of its processes."""
    port = f"--master-port={free_port()}"
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", port, "-m", "trainer", "synthetic_small"]
    done = python(*command, *overrides(place, "torchrun"))
    return last_json(done)


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


def test_a_workers_mistake_is_one_sentence_without_a_second_attempt(place):
    done = python("-m", "launch", "train", "synthetic_small", *overrides(place, "wrong", model__image__patch=5))
    assert done.returncode == 1 and done.stdout == "" and "attempt 2" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: model.image.patch = 5 must divide")
    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    run_id = json.loads((place / "runs" / "wrong" / "mlflow_run.json").read_text())["run_id"]
    assert client.get_run(run_id).info.status == "FAILED"


@pytest.fixture(scope="module")
def head():
    """A Ray as `ray start --head` makes it, with a token, its own ports and folder; yields what a client needs."""
    folder = Path(tempfile.mkdtemp(prefix="h"))
    env = environment(
        RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=os.urandom(32).hex(), PATH=f"{BIN}:{os.environ['PATH']}"
    )  # fmt: skip
    ports = {
        name: free_port()
        for name in ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    }
    options = [f"--{name}={port}" for name, port in ports.items()]
    options += [f"--temp-dir={folder}", "--num-cpus=2", "--disable-usage-stats", f"--object-store-memory={100 << 20}"]
    log = (folder / "start.log").open("w")
    process = subprocess.Popen(
        [str(BIN / "ray"), "start", "--head", "--block", *options], env=env, stdout=log, stderr=log, cwd=folder
    )
    client = {**env, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports['dashboard-port']}"}
    try:
        wait_until(lambda: ray_cli(client, "job", "list").returncode == 0, "the dashboard answers", 120)
        yield client
    finally:
        for pid in processes_with(str(folder)):
            os.kill(pid, signal.SIGKILL)
        process.wait(60)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_submitted_job_stops_with_a_checkpoint_and_continues(head, under_torchrun, place):
    endless = {"training__max_steps": 10**6, "training__epochs": 10**5, "training__eval_every": 10**6}
    submitted = submit(head, "first", overrides(place, "job", **endless), wait=False)
    assert submitted.returncode == 0, output(submitted)
    run = place / "runs" / "job"
    wait_until(lambda: (run / "metrics.jsonl").exists() and len(logged(run, *SAME)) >= 3, "three steps are done", 180)
    ray_cli(head, "job", "stop", "first", "--no-wait")
    wait_until(lambda: "was stopped" in output(ray_cli(head, "job", "status", "first")), "the job has stopped", 90)

    last = max(logged(run, *SAME))
    assert [path.name for path in (run / "checkpoints").glob(f"*{last:010d}/COMMIT")] == ["COMMIT"], "a step was lost"
    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    run_id = json.loads((run / "mlflow_run.json").read_text())["run_id"]
    stopped = client.get_run(run_id)
    assert (stopped.info.status, stopped.data.tags["ray.submission_id"]) == ("KILLED", "first")

    total = max(last, STEPS) + 2
    endless["training__max_steps"] = total
    done = submit(head, "second", overrides(place, "job", **endless), wait=True)
    assert done.returncode == 0, output(done)
    result = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))
    assert (result["status"], result["step"], result["run_id"]) == ("finished", total, run_id)
    assert f"continuing job at step {last}" in done.stdout
    losses = logged(run, *SAME)
    assert sorted(losses) == list(range(1, total + 1))
    for step, values in logged(place / "runs" / "torchrun", *SAME).items():
        assert losses[step] == pytest.approx(values, rel=1e-6), f"step {step}"
    finished = client.get_run(run_id)
    assert (finished.info.status, finished.data.tags["ray.submission_id"]) == ("FINISHED", "second")


def submit(head, submission_id, arguments, wait):
    settings = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
    flags = ["--working-dir", ".", "--submission-id", submission_id, "--runtime-env-json", settings]
    flags += [] if wait else ["--no-wait"]
    return ray_cli(
        head, "job", "submit", *flags, "--", "python", "-m", "launch", "train", "synthetic_small", *arguments
    )


def ray_cli(env, *arguments):
    return subprocess.run(
        [str(BIN / "ray"), *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240
    )


def output(done):
    return done.stdout + done.stderr


def wait_until(condition, what, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.3)


def processes_with(text: str) -> list[int]:
    """Processes whose command line holds this text, this one excepted."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:  # it has ended meanwhile
            continue
    return found
