"""Running the project's commands as a user does: as processes, from the project's folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
