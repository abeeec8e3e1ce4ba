"""Two drivers and one run on Ray: refused while one lives, followed when it is frozen, nothing from it afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.frozen import freeze, snapshot, wake
from tests.launch.commands import ROOT, SMALL, environment, last_json, python
from trainer.checkpoints.find import committed_paths
from trainer.run_folder import metric_lines

pytestmark = [pytest.mark.ray, pytest.mark.long]
ENDLESS = 1_000_000


def command(place: Path, steps: int) -> list[str]:
    words = [*SMALL, "name=two", f"data.url={place}/data", f"training.storage={place}/runs", "optim.schedule=constant"]
    words += ["training.lease_s=4", f"training.epochs={ENDLESS}", f"training.max_steps={steps}"]
    words += [f"training.eval_every={ENDLESS}", "training.checkpoint.every=20"]
    return ["-m", "launch", "train", "synthetic_small", *words]


def start(place: Path) -> subprocess.Popen[str]:
    words = [sys.executable, *command(place, ENDLESS)]
    pipes = {"stdout": subprocess.PIPE, "stderr": (place / "log").open("w")}
    return subprocess.Popen(words, cwd=ROOT, env=environment(), text=True, **pipes)  # type: ignore[call-overload, no-any-return]


def reaches(driver: subprocess.Popen[str], run: str, step: int) -> None:
    deadline = time.monotonic() + 240
    while not any(int(path.rsplit("-", 1)[1]) >= step for path in committed_paths(run)):
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


def newest(run: str) -> int:
    return max(int(path.rsplit("-", 1)[1]) for path in committed_paths(run))


def workers_below(pid: int) -> list[psutil.Process]:
    below = psutil.Process(pid).children(recursive=True)
    return [one for one in below if "RayTrainWorker" in " ".join(one.cmdline())]


def test_two_drivers_of_one_run(place: Path) -> None:
    run = str(place / "runs" / "two")
    first = start(place)
    try:
        reaches(first, run, 20)
        refused = python(*command(place, ENDLESS))
        assert refused.returncode == 2 and f"(pid {first.pid})" in refused.stderr
        assert refused.stderr.strip().splitlines()[-1].startswith(f"error: run two at {run} belongs to ")
        # Workers that die are followed by others of the same run, which the driver owns all the while.
        os.kill(workers_below(first.pid)[0].pid, signal.SIGKILL)
        reaches(first, run, newest(run) + 60)
        freeze(first)
        last = newest(run) + 500
        deadline = time.monotonic() + 60
        while (second := python(*command(place, last), timeout=500)).returncode == 2:
            assert time.monotonic() < deadline, second.stderr
        assert last_json(second)["step"] == last
        after = {name: data for name, data in snapshot(run).items() if "/two/ray/" not in name}
        wake(first)
        first.communicate(timeout=120)
    finally:
        first.kill()
    said = (place / "log").read_text()
    assert first.returncode == 1 and "it writes nothing more there" in said, said
    assert {name: data for name, data in snapshot(run).items() if "/two/ray/" not in name} == after
    lines = [line for line in metric_lines(run) if "train/loss" in line.get("metrics", {})]
    assert Counter(line["step"] for line in lines) == dict.fromkeys(range(1, last + 1), 1)
