"""What the log of a job tells about its run: its step, its MLflow run, its result."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any


def what_it_said(text: str) -> dict[str, Any]:
    """What a job's log tells: `step` and `steps`, `mlflow_run_id`, and `result`, the JSON line that it ended with."""
    said: dict[str, Any] = {}
    if steps := re.findall(r"\bstep (\d+)/(\d+)", text):
        said["step"], said["steps"] = (int(number) for number in steps[-1])
    if runs := re.findall(r"is MLflow run (\w+)", text):
        said["mlflow_run_id"] = runs[-1]
    for result in _json_lines(text):
        said.update(result=result, step=result.get("step", said.get("step")))
        said["mlflow_run_id"] = result.get("run_id") or said.get("mlflow_run_id")
    return said


def _json_lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        if line.startswith("{") and line.endswith("}"):
            try:
                value = json.loads(line)
            except ValueError:
                continue  # somebody else's braces
            if "status" in value:
                yield value
