"""Curves as MLflow has them, and as the run's own file has them."""

from __future__ import annotations

import json
from pathlib import Path


def points(client, run_id, key):
    """(step, value) of a metric as MLflow has it."""
    return [(point.step, point.value) for point in client.get_metric_history(run_id, key)]


def written(run_dir: Path):
    """Metric -> (step, value) of every point in `metrics.jsonl`."""
    curves: dict[str, list] = {}
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for key, value in row.get("metrics", {}).items() if "step" in row else ():
            curves.setdefault(key, []).append((row["step"], value))
    return curves
