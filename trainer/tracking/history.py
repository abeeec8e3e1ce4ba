"""Runs as MLflow keeps them, for reading: found by folder, id, name or experiment, with curves and artifacts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec

from data_shards.paths import absolute_url
from trainer.run_folder import METRICS, RESULT, stored_run
from trainer.tracking.mlflow_client import metric_history, tracking_client

PARENT = "mlflow.parentRunId"


class UnknownRunError(ValueError):
    """No such run or experiment. The text is one sentence for the user."""


@dataclass
class TrackedRun:
    """One MLflow run. Curves and artifacts are fetched when they are asked for."""

    uri: str
    id: str
    name: str
    status: str
    started_ms: int
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    _folder: TemporaryDirectory[str] | None = field(default=None, repr=False)

    def history(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) of every point."""
        return metric_history(self.uri, self.id, metric) if metric in self.metrics else []

    def artifact(self, path: str) -> Path | None:
        """A local copy of an artifact; None if the run has none of this name. It lives as long as this object."""
        folder = path.rpartition("/")[0] or None
        if path not in self._listed(folder):
            return None
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="artifacts_")
        return Path(tracking_client(self.uri).download_artifacts(self.id, path, self._folder.name))

    def json(self, path: str) -> Any:
        """Content of a JSON artifact; None if there is none."""
        file = self.artifact(path)
        return None if file is None else json.loads(file.read_text(encoding="utf-8"))

    def _listed(self, folder: str | None) -> set[str]:
        if folder not in self._lists:
            self._lists[folder] = {item.path for item in tracking_client(self.uri).list_artifacts(self.id, folder)}
        return self._lists[folder]

    @cached_property
    def _lists(self) -> dict[str | None, set[str]]:
        return {}


def find_runs(uri: str | None, wanted: Sequence[str], experiment: str | None) -> list[TrackedRun]:
    """The runs named, then those of the experiment (children of sweeps too, their parents not), oldest first.

    Args:
        uri: where names, ids and experiments are looked up; folders of runs know it themselves.
        wanted: folders, ids or names of runs.
    Raises:
        UnknownRunError: one of them cannot be found.
    """
    found = [_find(uri, word) for word in wanted]
    if experiment is not None:
        found += _of_experiment(_needed(uri, f"experiment {experiment}"), experiment)
    unique = {run.id: run for run in found}
    return sorted(unique.values(), key=lambda run: run.started_ms)


def _find(uri: str | None, word: str) -> TrackedRun:
    folder = absolute_url(word)
    stored = stored_run(folder)
    if stored is not None:
        return _run(stored["uri"], tracking_client(stored["uri"]).get_run(stored["run_id"]))
    fs, root = fsspec.url_to_fs(folder)
    if fs.exists(f"{root}/{METRICS}"):
        raise UnknownRunError(
            f"{word} was made with tracking.mlflow=false, and runs are compared by what MLflow keeps of them; its test "
            f"metrics are in {word}/{RESULT}"
        )
    uri = _needed(uri, f"run {word}")
    client = tracking_client(uri)
    ids = [item.experiment_id for item in client.search_experiments()]
    if re.fullmatch(r"[0-9a-f]{32}", word):
        matches = client.search_runs(ids, f"attributes.run_id = '{word}'")
    else:
        matches = client.search_runs(ids, "attributes.run_name = '" + word.replace("'", "") + "'")
    if not matches:
        raise UnknownRunError(f"{word!r} is no folder of a run, and no run of that id or name is in MLflow at {uri}")
    return _run(uri, matches[0])  # the newest of that name


def _of_experiment(uri: str, name: str) -> list[TrackedRun]:
    client = tracking_client(uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        known = ", ".join(sorted(item.name for item in client.search_experiments()))
        raise UnknownRunError(f"MLflow at {uri} has no experiment {name!r}; there are {known}")
    runs, token = [], None
    while True:
        page = client.search_runs([experiment.experiment_id], page_token=token)
        runs += [_run(uri, found) for found in page]
        token = page.token
        if not token:
            break
    return [run for run in runs if run.tags.get("job_type") != "sweep"]


def _needed(uri: str | None, what: str) -> str:
    if uri is None:
        raise UnknownRunError(
            f"where is {what} tracked? Give --uri (or MLFLOW_TRACKING_URI), or the folders of the runs"
        )
    return uri


def _run(uri: str, found: Any) -> TrackedRun:
    info, data = found.info, found.data
    params, metrics, tags = dict(data.params), dict(data.metrics), dict(data.tags)
    return TrackedRun(uri, info.run_id, info.run_name, info.status, info.start_time, params, metrics, tags)
