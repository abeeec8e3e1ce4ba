"""An elastic run on three hosts, one of which is killed, comes back, is cut off, comes back, and is drained.

No record is lost or repeated. One run goes through it all, as starting Ray takes longest.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from benchmarks.finished_run import lost_and_repeated
from benchmarks.survive import train_names
from data_shards import open_manifest
from tests.launch.commands import SMALL, last_json, python
from tests.launch.hosts import NEEDS_HOSTS, Hosts, hosts
from trainer.checkpoints.find import committed_paths
from trainer.training.record_trace import delivered

pytestmark = NEEDS_HOSTS

VICTIM = 2
PATIENCE_S = 240.0
CHECKPOINT_EVERY = 20


class Scenario:
    """The run on its hosts, and what can be seen of it from outside."""

    def __init__(self, machines: Hosts) -> None:
        self.hosts, self.folder = machines, machines.folder
        self.run_dir = self.folder / "runs" / "hosts"
        self.times: dict[str, float] = {}
        settings = {
            "name": "hosts",
            "data.url": self.folder / "data",
            "training.storage": self.folder / "runs",
            "training.epochs": 100_000,
            "training.eval_every": 100_000,
            "training.checkpoint.every": CHECKPOINT_EVERY,
            "training.trace_records": "true",
            "optim.schedule": "constant",
            "parallel.workers": 2,
            "parallel.expert_parallel": 2,
            "parallel.experts_across_nodes": "true",
            "parallel.timeout_s": 60,
            "cluster.min_workers": 1,
            "cluster.address": machines.address,
        }
        overrides = [*[text for text in SMALL if "epochs" not in text], *(f"{k}={v}" for k, v in settings.items())]
        command = [sys.executable, "-m", "launch", "train", "synthetic_small", *overrides]
        self.driver = machines.popen(0, *command, log="driver.log")

    def steps(self) -> list[tuple[int, int]]:
        """(step, world) in the order in which rank 0 did them."""
        path = self.run_dir / "records" / "rank-00000.jsonl"
        if not path.exists():
            return []
        entries = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        return [(entry["step"], entry["world"]) for entry in entries]

    def log(self) -> str:
        return (self.folder / "driver.log").read_text()

    def trains_on(self, world: int, what: str) -> None:
        """Wait until `world` workers have done so many steps that there is a checkpoint among them."""
        start, before = time.monotonic(), len(self.steps())
        while True:
            new = [step for step, workers in self.steps()[before:] if workers == world]
            if new:
                self.times.setdefault(what, round(time.monotonic() - start, 1))
            if len(new) > 2 * CHECKPOINT_EVERY:
                return
            assert self.driver.poll() is None, self.log()
            assert time.monotonic() - start < PATIENCE_S, f"{what}: not on {world} workers\n{self.log()}"
            time.sleep(0.2)

    def come_back(self) -> None:
        self.hosts.kill(VICTIM)  # what a cut-off or drained host still runs
        self.hosts.heal(VICTIM)
        self.hosts.start_ray(VICTIM, cpus=1)


@pytest.fixture(scope="module")
def scenario():
    """The run after all that happened to it."""
    with hosts(3) as machines:
        options = ["-o", "records=250", "-o", "modalities=series:1,vector:1,image:1", "--workers", "1"]
        last_json(python("-m", "launch", "pack", "synthetic", "--out", str(machines.folder / "data"), *options))
        for host, cpus in ((0, 0), (1, 1), (2, 1)):
            machines.start_ray(host, cpus)
        played = Scenario(machines)
        played.trains_on(2, "start")
        for what, accident in (
            ("kill", machines.kill),
            ("cut", machines.cut),
            ("drain", lambda host: machines.drain(host, 60)),
        ):
            accident(VICTIM)
            played.trains_on(1, what)
            if what != "drain":
                played.come_back()
                played.trains_on(2, f"back after {what}")
        played.driver.send_signal(signal.SIGTERM)
        played.code = played.driver.wait(120)
        print(f"\nseconds until training went on: {played.times}")
        yield played


def test_workers_follow_the_hosts(scenario):
    worlds = [world for _, world in scenario.steps()]
    changes = [world for i, world in enumerate(worlds) if i == 0 or worlds[i - 1] != world]
    assert changes == [2, 1, 2, 1, 2, 1]
    assert "1 workers instead of parallel.workers = 2: expert-parallel degree 1" in scenario.log()


def test_no_record_is_lost_or_repeated(scenario):
    manifest = open_manifest(str(scenario.folder / "data"), {})
    keys = [key for number in range(len(manifest.shards)) for key in train_names(manifest, number)]
    epochs = delivered(str(scenario.run_dir))
    assert len(epochs) > 3
    del epochs[max(epochs)]  # the run was stopped within it
    assert lost_and_repeated(epochs, keys) == (0, 0)


def test_announced_changes_lose_no_step(scenario):
    steps = scenario.steps()
    turns = [(steps[i - 1], steps[i]) for i in range(1, len(steps)) if steps[i - 1][1] != steps[i][1]]
    kinds = ["kill", "grow", "cut", "grow", "drain"]
    for kind, (before, after) in zip(kinds, turns, strict=True):
        if kind in ("grow", "drain"):
            assert after[0] == before[0] + 1, kind
        else:
            assert before[0] - 2 * CHECKPOINT_EVERY <= after[0] <= before[0] + 1, kind


def test_stop_writes_a_checkpoint_of_the_last_step(scenario):
    assert scenario.code == 128 + signal.SIGTERM, scenario.log()
    last = scenario.steps()[-1][0]
    assert Path(committed_paths(str(scenario.run_dir))[0]).name == f"step-{last:010d}"
    run_id = json.loads((scenario.run_dir / "mlflow_run.json").read_text())["run_id"]
    client = MlflowClient(f"sqlite:///{scenario.folder}/mlflow.db")
    assert client.get_run(run_id).info.status == "KILLED"
    curve = [point.step for point in client.get_metric_history(run_id, "train/loss")]
    assert curve == list(range(1, last + 1))
