"""The verb `runs`: what runs there are, from their folders and from MLflow."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import fsspec

from data_shards.lease.entries import entries_at
from data_shards.lease.watch import head_of
from data_shards.paths import absolute_url
from launch.compare.compare import default_uri
from launch.output.tables import print_json_line, print_table
from trainer.config.paths import absolute_uri
from trainer.metrics.main_metric import primary_metric
from trainer.run_folder import CHECKPOINTS, CONFIG, METRICS, RESULT, metric_lines, read_json, stored_run
from trainer.tracking.history import TrackedRun, UnknownRunError, all_runs

logger = logging.getLogger(__name__)

_STATES = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped", "RUNNING": "running"}
_AGES = (("d", 86_400), ("h", 3_600), ("min", 60))


@dataclass(frozen=True)
class Listed:
    """One run.

    Attributes:
        state: running, finished, stopped, failed, or died (its process is gone, and said nothing).
        metric, value: the test metric that stands for it, else the last one of the validation part.
        bytes: of its folder, None where that is not known here. started: seconds since the epoch.
        place: the folder; empty if only MLflow knows the run. id: of MLflow.
    """

    name: str
    state: str
    data: str
    metric: str | None
    value: float | None
    bytes: int | None
    started: float | None
    place: str
    id: str | None


def show_runs(storage: str, uri: str | None) -> None:
    """A table, and the same as one JSON line. Raises UnknownRunError: an MLflow that was named cannot be read."""
    listed = list_runs(storage, uri)
    # What lies in no folder here has no size.
    rows = [(r.name, r.state, r.data, _score(r), _size(r.bytes), age_words(r.started)) for r in listed]
    columns = ("run", "state", "data", "main metric", "size", "age")
    print_table(f"runs of {absolute_url(storage)}", columns, rows)
    print_json_line({"runs": [asdict(run) for run in listed]})


def list_runs(storage: str, uri: str | None = None) -> list[Listed]:
    """Runs in a storage and in MLflow, each once, the newest first.

    Args:
        uri: of MLflow; None: MLFLOW_TRACKING_URI, or `mlflow.db` of the working folder if it is there.

    Raises:
        UnknownRunError: the MLflow that `uri` names cannot be read; of another one that is only said.
    """
    found = list(_in_folders(absolute_url(storage)))
    known = {run.id for run in found}
    where = absolute_uri(uri) if uri else default_uri()
    try:
        tracked = all_runs(where) if where else []
    except UnknownRunError as error:
        if uri:
            raise
        logger.warning("only folders are listed: %s", error)
        tracked = []
    found += [_tracked(run) for run in tracked if run.id not in known]
    return sorted(found, key=lambda run: -(run.started or 0.0))


def _in_folders(storage: str) -> Iterator[Listed]:
    fs, root = fsspec.url_to_fs(storage)
    fs.invalidate_cache(root)
    try:
        entries = fs.ls(root, detail=True)
    except FileNotFoundError:
        logger.warning("%s does not exist (yet): no folder of runs is there", storage)
        return
    for entry in entries:
        path = entry["name"].rstrip("/")
        if entry["type"] != "directory":
            continue
        files = {item["name"].rstrip("/").rsplit("/", 1)[-1] for item in fs.ls(path, detail=True)}
        if files & {METRICS, RESULT, CHECKPOINTS}:
            yield look_at(f"{storage.rstrip('/')}/{path.rsplit('/', 1)[-1]}")


def look_at(run_dir: str) -> Listed:
    """One run by its folder."""
    fs, path = fsspec.url_to_fs(run_dir)
    result, config = read_json(run_dir, RESULT) or {}, read_json(run_dir, CONFIG) or {}
    ended: str | None = None
    started: float | None = None
    last: dict[str, float] = {}
    for line in metric_lines(run_dir):
        started = started or line.get("time")
        ended = line.get("status", ended)
        last |= line.get("metrics", {})
    metric, value = _main(result.get("metrics") or last)
    stored = stored_run(run_dir)
    state = _alive(run_dir) or result.get("status") or _STATES.get(ended or "", "died")
    return Listed(
        run_dir.rsplit("/", 1)[-1], state, _data(config.get("data") or {}), metric, value,
        int(fs.du(path)), started, run_dir, result.get("run_id") or (stored["run_id"] if stored else None),
    )  # fmt: skip


def _alive(run_dir: str) -> str | None:
    """Whether a process owns the run: `running`, `died` without letting go of it, or None."""
    entries = entries_at(run_dir, "owner")
    head = head_of(entries, entries.numbers())
    if head is None:
        return None
    silent = not head.owner.runs_here() and time.time() - head.beat > head.lease_s
    return "died" if head.owner.is_dead() or silent else "running"


def _tracked(run: TrackedRun) -> Listed:
    metric, value = _main(dict(run.metrics))
    mixture = ", ".join(
        sorted(v for k, v in run.params.items() if k.startswith("data.mixture.") and k.endswith(".url"))
    )
    data = run.params.get("data.url") or mixture
    state = _STATES.get(run.status, run.status.lower())
    return Listed(run.name, state, data, metric, value, None, run.started_ms / 1000, "", run.id)


def _main(metrics: dict[str, float]) -> tuple[str | None, float | None]:
    for part in ("test", "val"):
        try:
            name = primary_metric(part, metrics)
        except ValueError:
            continue
        return name, metrics.get(name)
    return None, None


def _data(section: Mapping[str, Any]) -> str:
    return section.get("url") or ", ".join(entry["url"] for entry in (section.get("mixture") or {}).values())


def _score(run: Listed) -> str:
    return "" if run.metric is None or run.value is None else f"{run.metric.removeprefix('test/')} {run.value:.4f}"


def _size(number: int | None) -> str:
    return "MLflow" if number is None else f"{number / 2**20:,.1f} MiB"


def age_words(started: float | None, now: float | None = None) -> str:
    """How long ago, in the largest unit that fits: `3 d`."""
    if started is None:
        return ""
    seconds = max(0.0, (time.time() if now is None else now) - started)
    return next((f"{int(seconds // size)} {unit}" for unit, size in _AGES if seconds >= size), f"{int(seconds)} s")
