"""Running the project's commands as a user does: as processes, from the project's folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Small and deterministic: no dropout, one block, few experts.
SMALL = [
    "model.dim=16",
    "model.layers=1",
    "model.heads=2",
    "model.bins=4",
    "model.moe.experts=4",
    "model.moe.top_k=2",
    "training.epochs=2",
    "training.batch_size=32",
    "training.log_every=1",
]
STEPS = 8
SAME = ("train/loss", "train/grad_norm")
"""Metrics that equal runs have in common to the last digits."""


def environment(**changes: str) -> dict[str, str]:
    """Of a user without a Ray anywhere: neither an address nor a token."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **changes}


def python(
    *arguments: str, env: dict[str, str] | None = None, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` in the project's folder."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=env or environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The result that the last line on stdout holds; the whole output if there is none."""
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def logged(run_dir: Path, *names: str) -> dict[int, list[float]]:
    """step -> values of these metrics, from a run's metrics.jsonl."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {
        line["step"]: [line["metrics"][name] for name in names] for line in lines if names[0] in line.get("metrics", {})
    }


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


def wait_until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    """Ask again and again. Raises AssertionError when the time is up."""
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
