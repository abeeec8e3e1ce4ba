"""Tracking with MLflow, so that nothing about MLflow can slow or stop training. The only file that imports it.

A run is one MLflow run however often it is restarted: whoever is first (the driver, or rank 0 under torchrun) makes
it and stores its id in the run's folder; everyone later opens it by that id. Rank 0 logs through a queue
(`trainer.tracking.queued`) that delivers in batches, waits for nobody, and spools to disk while the server is away.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config.paths import database_file
from trainer.config.sections import TrackingConfig
from trainer.run_folder import METRICS, MLFLOW_RUN, MLflowRun, stored_run_id, write_json
from trainer.tracking.failures import ClosedError, RefusedError, Remarks, UncertainError
from trainer.tracking.json_lines import operations_in
from trainer.tracking.mlflow_batches import CHANGED, PARAM_LENGTH, TAG_LENGTH, Batches, later_values
from trainer.tracking.mlflow_client import brief, experiment_deleted, explain, meaning, run_deleted, tracking_client
from trainer.tracking.mlflow_models import log_model
from trainer.tracking.operations import Dataset, Operation, Status

if TYPE_CHECKING:
    from mlflow import MlflowClient


logger = logging.getLogger(__name__)

LINES = 1000  # of a run's record, sent at once


def open_run(config: TrackingConfig, run_name: str, tags: Mapping[str, str], run_dir: str) -> str | None:
    """Make or reopen the run now and return its id; None if MLflow is off or does not take it.

    Why it does not is said by the tracker of the run, which tries the same and knows where the record waits.
    """
    if not config.mlflow:
        return None
    store = RunStore(config, run_name, config.run_id, tags, run_dir)
    try:
        return store.open()
    except Exception as error:  # whatever fails here, training must go on
        logger.debug("no MLflow run yet: %s", brief(error))
        return None


def close_run(config: TrackingConfig, run_id: str | None, status: Status) -> None:
    """Set how a run ended, from outside of it; for a driver whose workers may have died."""
    if not config.mlflow or run_id is None:
        return
    try:
        tracking_client(config.uri).set_terminated(run_id, status)
    except Exception as error:
        logger.warning("MLflow run %s could not be marked %s (%s)", run_id, status, _why(config, run_id, error))


def deliver_lines(config: TrackingConfig, run_name: str, run_dir: str, status: Status) -> None:
    """Complete the run of a folder that was killed for good, or make it, and say how it ended.

    It sent its record from a queue, and its end, or all of it, was lost with it; its own lines were written at once.
    Points that MLflow has already are left alone; documents stay in the folder. A warning if MLflow does not take it.
    """
    if not config.mlflow:
        return
    store = RunStore(config, run_name, None, {}, run_dir)
    try:
        store.open()
        operations = list(operations_in(run_dir))
        for operation in operations:
            if operation["op"] != "metrics":
                store.apply([operation])
        metrics = [operation for operation in operations if operation["op"] == "metrics"]
        if metrics:
            store.apply(metrics)
        store.apply([{"op": "status", "status": status, "time": int(time.time() * 1000)}])
    except Exception as error:  # whatever fails here, other runs must go on
        why = explain(error, config.uri)
        logger.warning("MLflow has not everything of run %s (%s): it is in %s/%s", run_name, why, run_dir, METRICS)


def add_to_run(
    config: TrackingConfig,
    run_id: str | None,
    metrics: Mapping[int, Mapping[str, float]],
    folder: Path | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Add to a run that has ended, without a change of its status; a warning if MLflow cannot be reached.

    Args:
        metrics: step -> metrics; those that the run has already are left alone, as points cannot be replaced.
        folder: its files become artifacts under the same relative names.
    """
    if not config.mlflow or run_id is None:
        return
    remarks = Remarks(f"MLflow run {run_id}")
    try:
        client = tracking_client(config.uri)
        from mlflow.entities import Metric

        deleted = run_deleted(config.uri, client, run_id)
        if deleted is not None:
            raise ClosedError(deleted)
        known, time_ms = client.get_run(run_id).data.metrics, int(time.time() * 1000)
        points = [
            Metric(key, value, time_ms, step)
            for step, values in metrics.items()
            for key, value in values.items()
            if key not in known
        ]
        batches = Batches(client, run_id, remarks, check=lambda: None)
        batches.metrics(points)
        if folder is not None:
            client.log_artifacts(run_id, str(folder))
        batches.tags(tags or {})
    except Exception as error:
        logger.warning("nothing could be added to MLflow run %s (%s)", run_id, explain(error, config.uri))


def _why(config: TrackingConfig, run_id: str, error: Exception) -> str:
    """What an error about a run means: often that somebody deleted it."""
    found = meaning(error, config.uri)
    if isinstance(found, RefusedError):
        try:
            return run_deleted(config.uri, tracking_client(config.uri), run_id) or str(found)
        except Exception as other:
            return explain(other, config.uri)
    return explain(found, config.uri)


class RunStore:
    """One MLflow run, and how each operation is applied to it."""

    def __init__(
        self, config: TrackingConfig, run_name: str, run_id: str | None, tags: Mapping[str, str], run_dir: str
    ) -> None:
        self.run_id = run_id
        self.label = f"MLflow at {config.uri}"
        self.remarks = Remarks(self.label)
        self._config, self._run_name, self._run_dir = config, run_name, run_dir
        self._tags = {**config.tags, **tags}
        self._client: MlflowClient | None = None
        self._batches: Batches | None = None
        self._logged_steps: dict[str, int] = {}  # what is at or before this has arrived in an earlier process
        self._sent_steps: dict[str, int] = {}
        self._params: dict[str, str] = {}  # as they are now: what a parameter's tag says, else its own value

    def open(self) -> str:
        """Connect; reopen the run if there is one, else make it. Raises as `trainer.tracking.failures` says."""
        if self._client is not None and self.run_id is not None:
            return self.run_id
        try:
            return self._open()
        except Exception as error:
            found = meaning(error, self._config.uri)
            if isinstance(found, RefusedError):
                raise ClosedError(f"{self.label} does not open this run ({found}): correct tracking") from error
            raise found from error

    def _open(self) -> str:
        client = tracking_client(self._config.uri)
        run_id = self.run_id or stored_run_id(self._run_dir, self._config.uri)
        if run_id is None or not self._reopen(client, run_id):
            self.run_id = None
            run_id = self.run_id = self._create(client)
        self._batches = Batches(client, run_id, self.remarks, self._check)
        if stored_run_id(self._run_dir, self._config.uri) != run_id:
            write_json(self._run_dir, MLFLOW_RUN, MLflowRun(uri=self._config.uri or "", run_id=run_id))
        self._batches.tags(self._tags)
        self._client, self.run_id = client, run_id
        return run_id

    def _create(self, client: MlflowClient) -> str:
        name = self._config.experiment
        experiment = client.get_experiment_by_name(name)
        deleted = experiment_deleted(self._config.uri, experiment)
        if deleted is not None:
            raise ClosedError(deleted)
        experiment_id = experiment.experiment_id if experiment else self._create_experiment(client)
        return str(client.create_run(experiment_id, run_name=self._run_name).info.run_id)

    def _create_experiment(self, client: MlflowClient) -> str:
        from mlflow.exceptions import MlflowException

        database, name = database_file(self._config.uri or ""), self._config.experiment
        # Without a server artifacts lie beside the database, wherever the process that logs them happens to run.
        location = f"{database.parent.as_uri()}/mlartifacts" if database and database.is_absolute() else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            made = client.get_experiment_by_name(name) if error.error_code == "RESOURCE_ALREADY_EXISTS" else None
            if made is None:
                raise
            return str(made.experiment_id)  # another run has made it in this moment

    def _reopen(self, client: MlflowClient, run_id: str) -> bool:
        """Whether the run can go on. Raises ClosedError if it was deleted."""
        from mlflow.exceptions import MlflowException

        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            logger.warning("MLflow run %s no longer exists; a new one is made", run_id)
            return False
        experiment = client.get_experiment(run.info.experiment_id)
        moved = run_id != self.run_id and experiment.name != self._config.experiment
        deleted = run_deleted(self._config.uri, client, run_id)
        if deleted is not None:
            if not moved:
                raise ClosedError(deleted)
            logger.warning(
                "MLflow run %s was deleted; a new one is made in experiment %s, which begins with what is logged now",
                run_id,
                self._config.experiment,
            )
            return False
        if moved:
            logger.warning(
                "MLflow run %s goes on in experiment %s, where it was made; tracking.experiment=%s is for new runs",
                run_id,
                experiment.name,
                self._config.experiment,
            )
        # A restart repeats the steps since the checkpoint; each is to be seen once in the run's curves.
        self._logged_steps = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        self._params = run.data.params | later_values(run.data.params, run.data.tags)
        client.update_run(run_id, status="RUNNING")
        return True

    def apply(self, operations: Sequence[Operation]) -> None:
        """Apply one operation, or several of metrics at once. Raises as `trainer.tracking.failures` says."""
        try:
            self._apply(operations)
        except Exception as error:
            raise self._judged(error, operations[0]) from error

    def _judged(self, error: Exception, operation: Operation) -> Exception:
        """What an error means, once the run has been looked at: it may have been deleted meanwhile."""
        found = meaning(error, self._config.uri)
        if operation["op"] == "file" and isinstance(error, OSError | ImportError):
            found = UncertainError(brief(error))  # of where artifacts lie; the run itself may be well
        try:
            if isinstance(found, RefusedError | UncertainError):
                self._check()
        except Exception as other:
            found = other
        if isinstance(found, ClosedError):
            self._client = None  # so that the next attempt looks at the run again
        return found

    def _check(self) -> None:
        """Raises ClosedError if the run was deleted, or what keeps MLflow from saying so."""
        assert self.run_id is not None
        try:
            deleted = run_deleted(self._config.uri, tracking_client(self._config.uri), self.run_id)
        except Exception as error:
            found = meaning(error, self._config.uri)
            if not isinstance(found, RefusedError):
                raise found from error
            deleted = f"MLflow run {self.run_id} is no longer at {self._config.uri}: the same command makes a new one"
        if deleted is not None:
            raise ClosedError(deleted)

    def _apply(self, operations: Sequence[Operation]) -> None:
        assert self._client is not None and self._batches is not None and self.run_id is not None
        client, run_id, first = self._client, self.run_id, operations[0]
        match first["op"]:
            case "metrics":
                self._log_metrics(self._batches, operations)
            case "params":
                self._log_params(self._batches, first["values"])
            case "tags":
                self._batches.tags(first["values"])
            case "file":
                if not Path(first["path"]).exists():
                    raise RefusedError(f"{Path(first['path']).name} is gone")
                client.log_artifact(run_id, first["path"], first["folder"])
            case "dataset":
                self._log_dataset(client, run_id, first)
            case "model":
                log_model(
                    client,
                    self._batches,
                    run_id,
                    self._run_name,
                    first,
                    self._tags,
                    self._config.register_as,
                    self.remarks,
                )
            case "restart":
                self._logged_steps |= self._sent_steps
            case "replay":
                self._replay(self._batches, first["step"])
            case "status":
                client.set_terminated(run_id, first["status"], end_time=first["time"])

    def _log_metrics(self, batches: Batches, operations: Sequence[Operation]) -> None:
        from mlflow.entities import Metric

        points = [
            Metric(key, value, operation["time"], operation["step"])
            for operation in operations
            if operation["op"] == "metrics"
            for key, value in operation["values"].items()
            if operation["step"] > self._logged_steps.get(key, -1)
        ]
        batches.metrics(points)
        for point in points:
            self._sent_steps[point.key] = max(point.step, self._sent_steps.get(point.key, -1))

    def _replay(self, batches: Batches, step: int) -> None:
        """Send what the run's own lines say of steps up to this one, and MLflow lacks."""
        known = (own for own in operations_in(self._run_dir) if own["op"] == "metrics" and own["step"] <= step)
        while lines := list(islice(known, LINES)):
            self._log_metrics(batches, lines)
        self._logged_steps |= self._sent_steps

    def _log_params(self, batches: Batches, values: Mapping[str, str]) -> None:
        # A parameter cannot be changed, so the run keeps its first value and says what came later.
        changed = {
            f"{CHANGED}{key}": value
            for key, value in values.items()
            if self._params.get(key, value) not in (value, value[:PARAM_LENGTH], value[:TAG_LENGTH])
        }
        batches.tags(changed)
        batches.params({key: value for key, value in values.items() if key not in self._params})
        self._params |= values

    def _log_dataset(self, client: MlflowClient, run_id: str, operation: Dataset) -> None:
        from mlflow.data.http_dataset_source import HTTPDatasetSource
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag

        source = HTTPDatasetSource(url=operation["url"])
        # MLflow keeps 36 characters of a digest; the run's tag `dataset.digest` is the whole one.
        dataset = MetaDataset(source, operation["name"], operation["digest"][:36])  # type: ignore[abstract]
        tags = [InputTag("mlflow.data.context", operation["context"])]
        client.log_inputs(run_id, [DatasetInput(dataset._to_mlflow_entity(), tags)])
