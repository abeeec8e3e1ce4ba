"""Runs as MLflow keeps them, for reading: found by folder, id, name or experiment, with curves and artifacts."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec

from data_shards.paths import absolute_url
from trainer.config.paths import database_file
from trainer.run_folder import METRICS, RESULT, read_json, stored_run
from trainer.tracking.mlflow_batches import PARAM_LENGTH, later_values
from trainer.tracking.mlflow_client import experiment_deleted, explain, metric_history, run_deleted, tracking_client

logger = logging.getLogger(__name__)

PARENT = "mlflow.parentRunId"
ACTIVE, DELETED, EVERY = 1, 2, 3  # MLflow's view types


class UnknownRunError(ValueError):
    """No such run or experiment. The text is one sentence for the user."""


@dataclass
class TrackedRun:
    """One MLflow run. Curves and artifacts are fetched when they are asked for.

    Attributes:
        params: the latest values. first_params: what MLflow shows, for those that the run was continued with others of.
    """

    uri: str
    id: str
    name: str
    status: str
    started_ms: int
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    first_params: Mapping[str, str] = field(default_factory=dict)
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
        UnknownRunError: one of them cannot be found, was deleted, or is in an MLflow that cannot be read.
    """
    found = [_find(uri, word) for word in wanted]
    if experiment is not None:
        found += _of_experiment(_needed(uri, f"experiment {experiment}"), experiment)
    unique = {run.id: run for run in found}
    return sorted(unique.values(), key=lambda run: run.started_ms)


def all_runs(uri: str) -> list[TrackedRun]:
    """Every run that is not deleted, but parents of sweeps. Raises UnknownRunError: MLflow cannot be read."""
    with _reading(uri, "the list of runs"):
        client = tracking_client(uri)
        known = client.search_experiments(view_type=ACTIVE)
        runs = [_run(uri, found) for own in known for found in _pages(client, own.experiment_id, ACTIVE)]
    return [run for run in runs if run.tags.get("job_type") != "sweep"]


def _find(uri: str | None, word: str) -> TrackedRun:
    folder = absolute_url(word)
    stored = stored_run(folder)
    if stored is not None:
        with _reading(stored["uri"], word):
            return _by_id(stored["uri"], stored["run_id"])
    fs, root = fsspec.url_to_fs(folder)
    if fs.exists(f"{root}/{METRICS}"):
        why = (read_json(folder, RESULT) or {}).get("mlflow") or "tracking.mlflow=false, or it has not arrived yet"
        raise UnknownRunError(
            f"{word} is not in MLflow ({why}), and runs are compared by what MLflow keeps of them; its test metrics "
            f"are in {word}/{RESULT}"
        )
    uri = _needed(uri, f"run {word}")
    with _reading(uri, word):
        return _by_id(uri, word) if re.fullmatch(r"[0-9a-f]{32}", word) else _by_name(uri, word)


def _by_id(uri: str, run_id: str) -> TrackedRun:
    client = tracking_client(uri)
    deleted = run_deleted(uri, client, run_id)
    if deleted is not None:
        raise UnknownRunError(f"{deleted}; or leave it out")
    return _run(uri, client.get_run(run_id))


def _by_name(uri: str, name: str) -> TrackedRun:
    client = tracking_client(uri)
    mark = '"' if "'" in name else "'"
    filters = f"attributes.run_name = {mark}{name}{mark}"
    # The newest of that name, and a deleted one only if there is no other: then it is said that it was deleted.
    for kind in (ACTIVE, EVERY):
        ids = [item.experiment_id for item in client.search_experiments(view_type=kind)]
        matches = client.search_runs(ids, filters, run_view_type=kind) if ids else []
        if matches:
            return _by_id(uri, matches[0].info.run_id)
    raise UnknownRunError(f"{name!r} is no folder of a run, and no run of that id or name is in MLflow at {uri}")


def _of_experiment(uri: str, name: str) -> list[TrackedRun]:
    with _reading(uri, f"experiment {name}"):
        client = tracking_client(uri)
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            known = ", ".join(sorted(item.name for item in client.search_experiments()))
            raise UnknownRunError(f"MLflow at {uri} has no experiment {name!r}; there are {known}")
        deleted = experiment_deleted(uri, experiment)
        if deleted is not None:
            raise UnknownRunError(deleted)
        gone = list(_pages(client, experiment.experiment_id, DELETED))
        if gone:
            logger.warning(
                "%d runs of experiment %s were deleted in MLflow and are left out: %s",
                len(gone),
                name,
                ", ".join(sorted(run.info.run_name for run in gone)),
            )
        runs = [_run(uri, found) for found in _pages(client, experiment.experiment_id, ACTIVE)]
    return [run for run in runs if run.tags.get("job_type") != "sweep"]


def _pages(client: Any, experiment_id: str, kind: int) -> Iterator[Any]:
    """Runs of an experiment, however many."""
    token = None
    while True:
        page = client.search_runs([experiment_id], run_view_type=kind, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def _reading(uri: str, what: str) -> Iterator[None]:
    """An MLflow that cannot be read is a sentence; a database that is not there is not made by looking for it."""
    file = database_file(uri)
    if file is not None and not file.exists():
        raise UnknownRunError(f"{what} cannot be looked up: there is no MLflow database {file}")
    try:
        yield
    except UnknownRunError:
        raise
    except Exception as error:
        raise UnknownRunError(f"{what} cannot be read from MLflow: {explain(error, uri)}") from error


def _needed(uri: str | None, what: str) -> str:
    if uri is None:
        raise UnknownRunError(
            f"where is {what} tracked? Give --uri (or MLFLOW_TRACKING_URI), or the folders of the runs"
        )
    return uri


def _run(uri: str, found: Any) -> TrackedRun:
    info, data = found.info, found.data
    params, metrics, tags = dict(data.params), dict(data.metrics), dict(data.tags)
    later = later_values(params, tags)
    first = {key: params[key] for key in later}
    params |= {key: value[:PARAM_LENGTH] for key, value in later.items()}  # as other runs' parameters are cut
    return TrackedRun(uri, info.run_id, info.run_name, info.status, info.start_time, params, metrics, tags, first)
