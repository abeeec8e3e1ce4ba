"""What a run keeps, read from its folder; where the folder has no metrics, from its MLflow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec

from launch.errors import UsageError
from trainer.run_folder import METRICS, metric_lines, read_json, stored_result, stored_run
from trainer.tracking.history import TrackedRun, find_runs

STATUS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}


@dataclass
class FolderRun(TrackedRun):
    """A run as its folder has it; curves and files like those of one in MLflow."""

    points: dict[str, list[tuple[int, float]]] | None = None

    def history(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) of every point."""
        assert self.points is not None
        return self.points.get(metric, [])

    def artifact(self, path: str) -> Path | None:
        """The file, or a local copy; None if the run has none of this name."""
        fs, root = fsspec.url_to_fs(self.uri)
        if not fs.exists(f"{root}/{path}"):
            return None
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="report_")
        copy = Path(self._folder.name) / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(f"{root}/{path}", str(copy))
        return copy


def kept_by(run_dir: str) -> TrackedRun:
    """The run of a folder. Raises UsageError: there is none, or nothing was logged yet."""
    fs, root = fsspec.url_to_fs(run_dir)
    if fs.exists(f"{root}/{METRICS}"):
        return _of_folder(run_dir)
    if stored_run(run_dir) is not None:
        (tracked,) = find_runs(None, [run_dir], None)
        return tracked
    raise UsageError(
        f"{run_dir} has no {METRICS} and names no run of MLflow: there is no run there, or it has logged nothing yet"
    )


def _of_folder(run_dir: str) -> FolderRun:
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    metrics: dict[str, float] = {}
    points: dict[str, dict[int, float]] = {}
    started, status = 0.0, "RUNNING"
    for line in metric_lines(run_dir):
        started = started or float(line.get("time", 0.0))
        params |= line.get("params", {})
        tags |= line.get("tags", {})
        status = line.get("status", status)
        for name, value in line.get("metrics", {}).items():
            metrics[name] = value
            points.setdefault(name, {})[line["step"]] = value
    result = stored_result(run_dir)
    if result is not None:  # what stands for the run, also after a test that was logged later
        metrics |= result.get("metrics", {})
    stored = stored_run(run_dir)
    curves = {name: sorted(own.items()) for name, own in points.items()}
    return FolderRun(
        run_dir, stored["run_id"] if stored else "", run_dir.rsplit("/", 1)[-1], status, int(started * 1000),
        params, metrics, tags, points=curves,
    )  # fmt: skip


def said(params: Any, key: str, default: str = "") -> str:
    """A parameter; null and what is not there are `default`."""
    value = params.get(key, default)
    return default if value in ("null", None) else str(value)


def of_folder(run: TrackedRun, run_dir: str, name: str) -> Any:
    """A JSON file that is written after the run has ended, and so may be in its folder or with MLflow."""
    stored = read_json(run_dir, name)
    return run.json(name) if stored is None else stored
