"""Jobs on three hosts, submitted from a fourth that has no Ray: expert-parallel groups inside hosts and across them.

The numbers are those of one process group on one host, strangers are refused at every door, a host is lost and comes
back, and `stop` loses no step.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.launch.commands import SAME, STEPS, last_json, logged, overrides, python, wait_until
from tests.launch.hosts import NEEDS_HOSTS, hosts
from tests.ports import free_port
from trainer.checkpoints.find import committed_paths

pytestmark = NEEDS_HOSTS

CLIENT = 3
WORKERS = {"parallel__workers": 4}
ACROSS = {**WORKERS, "parallel__expert_parallel": 4, "parallel__experts_across_nodes": "true"}


@pytest.fixture(scope="module")
def machines():
    """A head without CPUs, two hosts with two each, and one that only asks."""
    with hosts(CLIENT + 1) as made:
        options = ["-o", "records=250", "-o", "modalities=series:1,vector:1,image:1", "--workers", "1"]
        last_json(python("-m", "launch", "pack", "synthetic", "--out", str(made.folder / "data"), *options))
        for host, cpus in ((0, 0), (1, 2), (2, 2)):
            made.start_ray(host, cpus)
        yield made


@pytest.fixture(scope="module")
def reference(machines):
    """The losses of four ranks in one process group on one host, without Ray."""
    port = f"--master-port={free_port()}"
    command = ["-m", "torch.distributed.run", "--nproc-per-node=4", port, "-m", "trainer", "synthetic_small"]
    last_json(python(*command, *overrides(machines.folder, "reference", **WORKERS, parallel__expert_parallel=2)))
    return logged(machines.folder / "runs" / "reference", *SAME)


@pytest.mark.parametrize(
    ("name", "settings", "layout"),
    [
        ("within", {**WORKERS, "parallel__expert_parallel": 2}, "rank 0 cpu experts 0-1, rank 1 cpu experts 2-3"),
        ("across", ACROSS, "rank 0 cpu expert 0, rank 1 cpu expert 1"),
    ],
)
def test_expert_parallel_groups_on_hosts_give_the_numbers_of_one_host(machines, reference, name, settings, layout):
    start = time.monotonic()
    done = machines.launch(CLIENT, "submit", "synthetic_small", *overrides(machines.folder, name, **settings))
    assert last_json(done)["exit_code"] == 0
    print(f"\n{name}: submitted and finished in {time.monotonic() - start:.0f} s")
    lines = [line for line in done.stderr.splitlines() if ": rank " in line]
    assert len(lines) == 2 and {"host1", "host2"} == {line.split(": rank")[0].split()[-1] for line in lines}
    assert layout in lines[0]
    losses = logged(machines.folder / "runs" / name, *SAME)
    assert sorted(losses) == list(range(1, STEPS + 1))
    worst = max(abs(a - b) / abs(b) for step in losses for a, b in zip(losses[step], reference[step], strict=True))
    print(f"{name}: losses and gradient norms differ from one host's by {worst:.1e} at most")
    assert worst <= 1e-6


def test_groups_across_hosts_must_be_asked_for(machines):
    settings = {**ACROSS, "parallel__experts_across_nodes": "false"}
    done = machines.launch(CLIENT, "submit", "synthetic_small", *overrides(machines.folder, "crossing", **settings))
    assert done.returncode == 2 and "would reach across nodes of 2 workers: choose one of [1, 2]" in done.stderr


def test_strangers_are_refused_at_every_door(machines):
    storage = ["--storage", str(machines.folder / "doctor")]
    done = machines.launch(CLIENT, "doctor", "--cluster", machines.dashboard, *storage)
    print(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])["findings"]
    assert done.returncode == 0 and not [each for each in found if each["state"] == "fail"]
    refused = " ".join(each["text"] for each in found if each["check"] == "strangers" and each["state"] == "ok")
    doors = [f"dashboard {machines.dashboard}", *(f"agent {machines.ip(host)}:52365" for host in range(3))]
    assert [door for door in doors if door not in refused] == []
    assert {each["node"] for each in found if each["check"] == "storage"} == {"host0", "host1", "host2"}
    assert next(each["text"] for each in found if each["check"] == "exchange").startswith("all-to-all of 3 nodes")


def test_a_host_is_lost_and_back_and_stop_loses_no_step(machines):
    endless = {"training__max_steps": 10**6, "training__epochs": 10**5, "training__eval_every": 10**6}
    settings = {**endless, **WORKERS, "parallel__expert_parallel": 2, "cluster__min_workers": 2}
    extra = ["training.checkpoint.every=10", "training.trace_records=true", "parallel.timeout_s=60"]
    arguments = [*overrides(machines.folder, "lost", **settings), *extra]
    last_json(machines.launch(CLIENT, "submit", "synthetic_small", *arguments, "--no-wait"))
    run = machines.folder / "runs" / "lost"

    def worlds() -> list[int]:
        path = run / "records" / "rank-00000.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["world"] for line in lines if line.endswith("}")]

    def trains_on(world: int, before: int) -> float:
        start = time.monotonic()
        wait_until(lambda: worlds()[before:].count(world) > 20, f"twenty steps on {world} workers", 240)
        return time.monotonic() - start

    times = {"start on 4": trains_on(4, 0)}
    machines.kill(2)
    times["killed, on 2"] = trains_on(2, len(worlds()))
    machines.start_ray(2, cpus=2)
    times["back, on 4"] = trains_on(4, len(worlds()))
    start = time.monotonic()
    stopped = machines.launch(CLIENT, "stop", "lost")
    said = last_json(stopped)
    times["stop"] = time.monotonic() - start
    print(f"\nseconds: { {what: round(seconds, 1) for what, seconds in times.items()} }")
    last = max(logged(run, *SAME))
    assert said["step"] == last and Path(committed_paths(str(run))[0]).name == f"step-{last:010d}"
    assert f"stopped at step {last} with checkpoint" in stopped.stderr
    status = machines.launch(CLIENT, "status", "lost")
    assert last_json(status)["status"] == "STOPPED" and last_json(status)["mlflow_run_id"] == said["mlflow_run_id"]
