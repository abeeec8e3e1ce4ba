"""Sweeps: spaces as files, and a sweep that is killed in the middle and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from launch.sweep.definition import plan_sweep
from launch.sweep.results import summarise
from launch.sweep.space import SpaceConfig, known_spaces, load_space, trials
from tests.frozen import freeze, snapshot, wake
from tests.launch.commands import ROOT, SMALL, environment, last_json, python
from trainer.config.errors import RecipeError
from trainer.config.recipe import apply_overrides, known_recipes, load_recipe

SPACE = """
metric: val/loss
mode: min
scheduler: asha
reduction: 2
grid:
  optim.lr: [0.0001, 0.01]
  model.moe.gate: [softmax, laplace]
"""


def space_file(folder: Path, text: str) -> str:
    (folder / "space.yaml").write_text(text)
    return str(folder / "space.yaml")


def test_every_shipped_space_fits_a_shipped_recipe() -> None:
    assert {"gates_routers", "experts", "irregularity", "entropy", "missing"} <= set(known_spaces())
    base = load_recipe("digits")
    for name in known_spaces():
        found = trials(load_space(name), base)
        assert len({trial.overrides for trial in found}) == len(found) > 5
        for trial in found:
            apply_overrides(base, trial.overrides)
    assert len(trials(load_space("gates_routers"), base)) == 27
    assert "digits" in known_recipes()


def test_a_space_is_the_same_trials_each_time() -> None:
    space = SpaceConfig.model_validate(
        {
            "seeds": 2,
            "samples": 3,
            "fixed": {"training.epochs": 1},
            "grid": {"model.moe.top_k": [1, 2], "training.tasks": [["digit"]]},
            "random": {"optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
        }
    )
    base = load_recipe("digits")
    found = trials(space, base)
    assert found == trials(space, base) and len(found) == 12 and not space.stops_early
    assert [trial.seed for trial in found[:4]] == [0, 1, 0, 1] and found[0].variant == found[1].variant
    config = apply_overrides(base, found[1].overrides)
    assert (config.training.seed, config.data.seed, config.training.epochs, config.training.tasks) == (
        1,
        1,
        1,
        ["digit"],
    )
    assert 1e-4 <= config.optim.lr <= 1e-2 and len({trial.variant for trial in found}) == 6


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("grid: {a: []}", "a key of grid has no value"),
        ("grid: {a: [1]}\nfixed: {a: 2}", "a: give a key in one of fixed, grid and random only"),
        ("samples: 4", "samples draws nothing without random"),
        ("random: {a: {low: 2, high: 1}}", "low=2.0 must be less than high=1.0"),
        ("sched: asha", "sched"),
        (
            "grid: {optim.lr: [1]}\nseeds: 2\ngrid: {optim.clip: [1]}",
            "key grid is given twice, in line 1 and in line 3",
        ),
        ("grid: {model.nonsense: [1]}", "model.nonsense"),
        ("metric: val/auroc\nmode: min\ngrid: {model.dim: [16]}", "mode=min would choose the worst model by val/auroc"),
        ("metric: val/x\ngrid: {model.dim: [16]}", "nothing says whether more of val/x is better"),
        ("metric: val/records\ngrid: {model.dim: [16]}", "metric=val/records counts records"),
    ],
)
def test_mistakes_in_a_space_are_sentences(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint.replace("(", r"\(")):
        plan_sweep("digits", space_file(tmp_path, text), [])
    with pytest.raises(RecipeError, match="did you mean experts"):
        load_space("expert")


def test_a_sweep_chooses_by_the_direction_of_its_metric(tmp_path: Path) -> None:
    place = [f"training.storage={tmp_path}", "name=s", "training.early_stopping={metric: val/loss, mode: min}"]
    for metric, mode in {"val/auroc": "max", "val/days/mae": "min", "val/loss": "min"}.items():
        sweep = plan_sweep("digits", space_file(tmp_path, f"metric: {metric}\ngrid: {{model.dim: [16]}}"), place)
        assert (sweep.metric, sweep.mode) == (metric, mode)
    sweep = plan_sweep("digits", space_file(tmp_path, "grid: {model.dim: [16]}"), place)
    assert (sweep.metric, sweep.mode) == ("val/loss", "min")


def test_the_best_variant_is_the_best_mean_of_all_its_seeds(tmp_path: Path) -> None:
    text = "metric: val/x\nmode: max\nseeds: 2\ngrid: {model.dim: [16, 32, 64]}"
    sweep = plan_sweep("digits", space_file(tmp_path, text), [f"training.storage={tmp_path}", "name=s"])
    assert [run.run_dir for run in sweep.runs[:2]] == [f"{tmp_path}/s/s-000", f"{tmp_path}/s/s-001"]
    scores = [0.5, 0.6, 0.9, 0.1, 0.99, None]  # the last one has failed
    for run, score in zip(sweep.runs, scores, strict=True):
        folder = Path(run.run_dir)
        folder.mkdir(parents=True)
        if score is not None:
            lines = [{"step": 1, "metrics": {"val/x": 0.01}}, {"step": 2, "metrics": {"val/x": score}}]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"half')
            result = {"status": "finished", "run_id": None, "checkpoint": "c", "metrics": {}}
            (folder / "result.json").write_text(json.dumps(result))
    found = summarise(sweep, {5: "out of memory"})
    assert [row["variant"] for row in found["variants"]] == ["dim=16", "dim=32", "dim=64"]
    assert found["variants"][0]["mean"] == pytest.approx(0.55) and found["best"]["trial"] == 1
    assert found["variants"][2]["finished"] == 1 and found["trials"][5]["error"] == "out of memory"


def test_a_trial_of_several_workers_takes_no_core_itself_yet_asks_for_something() -> None:
    """Its workers need every core; and a request for nothing is refused by Tune."""
    from ray.tune.execution.placement_groups import resource_dict_to_pg_factory

    from launch.sweep.tune import needs

    found = resource_dict_to_pg_factory(needs(load_recipe("digits", ["parallel.workers=2"])))
    assert found.bundles and found.required_resources.get("CPU", 0) == 0


@pytest.mark.ray
@pytest.mark.long
def test_trials_of_two_workers_finish(tmp_path):
    options = ["-o", "records=250", "-o", "modalities=series:1,vector:1", "--workers", "1"]
    last_json(python("-m", "launch", "pack", "synthetic", "--out", str(tmp_path / "data"), *options))
    space = space_file(tmp_path, "metric: val/loss\nmode: min\ngrid: {optim.lr: [0.0001, 0.01]}")
    words = [*SMALL, f"data.url={tmp_path}/data", f"training.storage={tmp_path}", "name=pair"]
    words += ["parallel.workers=2", "parallel.expert_parallel=2", "training.epochs=2", "optim.warmup=0"]
    found = last_json(python("-m", "launch", "sweep", "synthetic_small", space, *words, timeout=400))
    assert [row["finished"] for row in found["variants"]] == [1, 1]
    steps = (tmp_path / "pair" / "pair-000" / "metrics.jsonl").read_text()
    assert '"finished"' in (tmp_path / "pair" / "pair-000" / "result.json").read_text() and '"val/loss"' in steps


@pytest.mark.ray
@pytest.mark.long
def test_a_stopped_sweep_says_so_and_continues(tmp_path):
    options = ["-o", "records=250", "-o", "modalities=series:1,vector:1", "--workers", "1"]
    last_json(python("-m", "launch", "pack", "synthetic", "--out", str(tmp_path / "data"), *options))
    space = space_file(
        tmp_path, "metric: val/loss\nmode: min\nscheduler: none\ngrid: {optim.lr: [0.0001, 0.001, 0.01]}"
    )
    words = [*SMALL, f"data.url={tmp_path}/data", f"training.storage={tmp_path}/runs", "name=s", "optim.warmup=0"]
    words += ["parallel.workers=1", "parallel.expert_parallel=1", "training.epochs=4"]
    command = ["-m", "launch", "sweep", "synthetic_small", space, *words]
    driver = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_for(lambda: len(list((tmp_path / "runs" / "s").glob("*/result.json"))) >= 1, driver)
    driver.terminate()
    out, err = driver.communicate(timeout=120)
    assert driver.returncode == 128 + signal.SIGTERM, err.decode()
    stopped = json.loads(out.decode().splitlines()[-1])
    left = [row for row in stopped["trials"] if row["status"] == "unfinished"]
    assert left and "registered" not in stopped and b"the same command continues the sweep" in err
    assert not list((tmp_path / "runs" / "s").glob("*/pruned.json")), "what was cut off may go on"
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("fleximoe").experiment_id
    assert {run.info.status for run in client.search_runs([experiment])} == {"FINISHED", "KILLED"}
    assert (
        client.get_run(stopped["run_id"]).info.status == "KILLED" and client.search_model_versions("name = 's'") == []
    )
    ended = last_json(python(*command))
    assert ended["run_id"] == stopped["run_id"] and [row["status"] for row in ended["trials"]] == ["finished"] * 3
    assert {run.info.status for run in client.search_runs([experiment])} == {"FINISHED"}
    assert len(client.search_model_versions("name = 's'")) == 1


@pytest.mark.ray
@pytest.mark.long
def test_a_killed_sweep_continues_to_the_same_best(tmp_path):
    options = ["-o", "records=250", "-o", "modalities=series:1,vector:1", "--workers", "1"]
    last_json(python("-m", "launch", "pack", "synthetic", "--out", str(tmp_path / "data"), *options))
    words = [*SMALL, f"data.url={tmp_path}/data", "parallel.workers=1", "parallel.expert_parallel=1"]
    words += ["training.epochs=3", "optim.warmup=0"]
    command = ["-m", "launch", "sweep", "synthetic_small", space_file(tmp_path, SPACE), *words]
    broken = [*command, f"training.storage={tmp_path}/broken", "name=s"]
    driver = subprocess.Popen(
        [sys.executable, *broken], cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wait_for(lambda: len(list((tmp_path / "broken" / "s").glob("*/result.json"))) >= 1, driver)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    ended = set((tmp_path / "broken" / "s").glob("*/result.json"))
    assert len(ended) < 4
    times = {path: path.stat().st_mtime_ns for path in ended}
    resumed = last_json(python(*broken))
    assert {path: path.stat().st_mtime_ns for path in ended} == times, "what had finished was not done again"
    whole = last_json(python(*command, f"training.storage={tmp_path}/whole", "name=s"))
    assert resumed["best"]["variant"] == whole["best"]["variant"]
    assert resumed["best"]["score"] == whole["best"]["score"]

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("fleximoe").experiment_id
    for result in (resumed, whole):
        parent = result["run_id"]
        children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'")
        assert len(children) == 4 and len({child.info.run_name for child in children}) == 4
        assert {child.info.status for child in children} <= {"FINISHED", "KILLED"}
        assert client.get_run(parent).info.status == "FINISHED"
        stopped = [row for row in result["trials"] if row["status"] == "stopped"]
        assert len(stopped) + sum(row["status"] == "finished" for row in result["trials"]) == 4
    known = client.search_model_versions("name = 's'")
    (version,) = [found for found in known if found.tags["uri"] == whole["best"]["checkpoint"]]
    assert len(version.tags["data.digest"]) == 64
    assert version.tags["parent_run"] == whole["run_id"] and version.run_id == whole["best"]["run_id"]
    space_file(tmp_path, SPACE + "seeds: 2\n")
    refused = python(*broken)
    assert refused.returncode == 2 and "holds a sweep of another recipe or space" in refused.stderr


def wait_for(done, process, timeout_s=240.0):
    deadline = time.monotonic() + timeout_s
    while not done():
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline, "the sweep did not get there in time"
        time.sleep(0.1)


@pytest.mark.ray
@pytest.mark.long
def test_two_sweeps_of_one_name(tmp_path):
    """Refused while the first lives; followed once it is frozen; woken, it writes nothing, nor do its trials."""
    options = ["-o", "records=250", "-o", "modalities=series:1,vector:1", "--workers", "1"]
    last_json(python("-m", "launch", "pack", "synthetic", "--out", str(tmp_path / "data"), *options))
    space = space_file(tmp_path, "metric: val/loss\nmode: min\nscheduler: none\ngrid: {optim.lr: [0.0001, 0.001]}")
    words = [*SMALL, f"data.url={tmp_path}/data", f"training.storage={tmp_path}/runs", "name=s", "optim.warmup=0"]
    words += ["parallel.workers=1", "parallel.expert_parallel=1", "training.epochs=80", "training.lease_s=4"]
    command = ["-m", "launch", "sweep", "synthetic_small", space, *words]
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=log, text=True
        )
    try:
        folder = tmp_path / "runs" / "s"
        wait_for(lambda: list(folder.glob("*/checkpoints/*/COMMIT")), first)
        refused = python(*command)
        assert refused.returncode == 2 and f"error: sweep s at {folder} belongs to " in refused.stderr
        assert f"(pid {first.pid})" in refused.stderr and "give this sweep another name=" in refused.stderr
        freeze(first)
        deadline = time.monotonic() + 60
        while (second := python(*command, timeout=500)).returncode == 2:
            assert time.monotonic() < deadline, second.stderr
        assert [row["status"] for row in last_json(second)["trials"]] == ["finished"] * 2
        after = snapshot(str(folder))
        wake(first)
        first.communicate(timeout=120)
        assert first.returncode == 1 and "it writes nothing more there" in (tmp_path / "log").read_text()
    finally:
        first.kill()
    assert snapshot(str(folder)) == after
    for number in range(2):
        lines = [json.loads(line) for line in (folder / f"s-{number:03d}" / "metrics.jsonl").read_text().splitlines()]
        logged = [line["step"] for line in lines if "train/loss" in line.get("metrics", {})]
        assert logged == sorted(set(logged)) and logged[0] == 1, "every step stands once"
