"""Tracking with MLflow, so that nothing about MLflow can slow or stop training. The only file that imports it.

A run is one MLflow run however often it is restarted: whoever is first (the driver, or rank 0 under torchrun) makes
it and stores its id in the run's folder; everyone later opens it by that id. Rank 0 logs through a queue
(`trainer.tracking.queued`) that delivers in batches, waits for nobody, and spools to disk while the server is away.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config.paths import database_file
from trainer.config.sections import TrackingConfig
from trainer.run_folder import MLFLOW_RUN, MLflowRun, stored_run_id, write_json
from trainer.tracking.mlflow_client import brief, tracking_client
from trainer.tracking.mlflow_models import register_version
from trainer.tracking.operations import Dataset, Model, Operation, Status
from trainer.tracking.queued import RefusedError

if TYPE_CHECKING:
    from mlflow import MlflowClient


logger = logging.getLogger(__name__)

METRICS_PER_BATCH = 1000  # the server's limit
PARAMS_PER_BATCH = 100  # the server's limit
PARAM_LENGTH = 6000  # the server's limit, in characters
# The server understood and said no: sending the same again would never succeed.
REJECTIONS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE"}


def open_run(config: TrackingConfig, run_name: str, tags: Mapping[str, str], run_dir: str) -> str | None:
    """Make or reopen the run now and return its id; None, with a warning, if MLflow is off or cannot be reached."""
    if not config.mlflow:
        return None
    store = RunStore(config, run_name, config.run_id, tags, run_dir)
    try:
        return store.open()
    except Exception as error:  # whatever fails here, training must go on
        logger.warning("MLflow at %s cannot be reached (%s); training goes on", config.uri, brief(error))
        return None


def close_run(config: TrackingConfig, run_id: str | None, status: Status) -> None:
    """Set how a run ended, from outside of it; for a driver whose workers may have died."""
    if not config.mlflow or run_id is None:
        return
    try:
        tracking_client(config.uri).set_terminated(run_id, status)
    except Exception as error:
        logger.warning("MLflow run %s could not be marked %s (%s)", run_id, status, brief(error))


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
    try:
        client = tracking_client(config.uri)
        from mlflow.entities import Metric

        run = client.get_run(run_id)
        known, time_ms = run.data.metrics, int(time.time() * 1000)
        points = [
            Metric(key, value, time_ms, step)
            for step, values in metrics.items()
            for key, value in values.items()
            if key not in known
        ]
        client.log_batch(run_id, metrics=points)
        if folder is not None:
            client.log_artifacts(run_id, str(folder))
        for key, text in (tags or {}).items():
            client.set_tag(run_id, key, text)
    except Exception as error:
        logger.warning("nothing could be added to MLflow run %s (%s)", run_id, brief(error))


class RunStore:
    """One MLflow run, and how each operation is applied to it."""

    def __init__(
        self, config: TrackingConfig, run_name: str, run_id: str | None, tags: Mapping[str, str], run_dir: str
    ) -> None:
        self.run_id = run_id
        self.label = f"MLflow at {config.uri}"
        self._config, self._run_name, self._run_dir = config, run_name, run_dir
        self._tags = {**config.tags, **tags}
        self._client: MlflowClient | None = None
        self._logged_steps: dict[str, int] = {}
        self._params: dict[str, str] = {}

    def open(self) -> str:
        """Connect; reopen the run if there is one, else make it."""
        if self._client is not None and self.run_id is not None:
            return self.run_id
        client = tracking_client(self._config.uri)
        run_id = self.run_id or stored_run_id(self._run_dir, self._config.uri)
        if run_id is None or not self._reopen(client, run_id):
            run_id = self._create(client)
        self._client, self.run_id = client, run_id
        return run_id

    def _create(self, client: MlflowClient) -> str:
        experiment = client.get_experiment_by_name(self._config.experiment)
        experiment_id = experiment.experiment_id if experiment else self._create_experiment(client)
        run_id = str(client.create_run(experiment_id, run_name=self._run_name, tags=self._tags).info.run_id)
        write_json(self._run_dir, MLFLOW_RUN, MLflowRun(uri=self._config.uri or "", run_id=run_id))
        return run_id

    def _create_experiment(self, client: MlflowClient) -> str:
        database = database_file(self._config.uri or "")
        # Without a server artifacts lie beside the database, wherever the process that logs them happens to run.
        location = f"{database.parent.as_uri()}/mlartifacts" if database and database.is_absolute() else None
        return str(client.create_experiment(self._config.experiment, artifact_location=location))

    def _reopen(self, client: MlflowClient, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            data = client.get_run(run_id).data
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            logger.warning("MLflow run %s no longer exists; a new one is made", run_id)
            return False
        # A restart repeats the steps since the checkpoint; each is to be seen once in the run's curves.
        self._logged_steps = {metric.key: metric.step for metric in data.to_proto().metrics}
        self._params = dict(data.params)
        client.update_run(run_id, status="RUNNING")
        for key, value in self._tags.items():
            client.set_tag(run_id, key, value)
        return True

    def apply(self, operations: Sequence[Operation]) -> None:
        """Apply one operation, or several of metrics at once.

        Raises RefusedError when the server said no, and whatever the client raises when it cannot be reached.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._apply(operations)
        except MlflowException as error:
            if error.error_code in REJECTIONS:
                raise RefusedError(brief(error)) from None
            raise

    def _apply(self, operations: Sequence[Operation]) -> None:
        assert self._client is not None and self.run_id is not None
        client, run_id, first = self._client, self.run_id, operations[0]
        match first["op"]:
            case "metrics":
                self._log_metrics(client, run_id, operations)
            case "params":
                self._log_params(client, run_id, first["values"])
            case "tags":
                for key, value in first["values"].items():
                    client.set_tag(run_id, key, value)
            case "file":
                client.log_artifact(run_id, first["path"], first["folder"])
            case "dataset":
                self._log_dataset(client, run_id, first)
            case "model":
                self._log_model(client, run_id, first)
            case "status":
                client.set_terminated(run_id, first["status"], end_time=first["time"])

    def _log_metrics(self, client: MlflowClient, run_id: str, operations: Sequence[Operation]) -> None:
        from mlflow.entities import Metric

        points = [
            Metric(key, value, operation["time"], operation["step"])
            for operation in operations
            if operation["op"] == "metrics"
            for key, value in operation["values"].items()
            if operation["step"] > self._logged_steps.get(key, -1)
        ]
        for start in range(0, len(points), METRICS_PER_BATCH):
            client.log_batch(run_id, metrics=points[start : start + METRICS_PER_BATCH])

    def _log_params(self, client: MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        values = {key: value[:PARAM_LENGTH] for key, value in values.items()}
        for key, value in values.items():
            if self._params.get(key, value) != value:
                # A parameter cannot be changed, so the run keeps its first value and says what came later.
                client.set_tag(run_id, f"changed.{key}", value)
        new = [Param(key, value) for key, value in values.items() if key not in self._params]
        for start in range(0, len(new), PARAMS_PER_BATCH):
            client.log_batch(run_id, params=new[start : start + PARAMS_PER_BATCH])
        self._params = {**values, **self._params}

    def _log_dataset(self, client: MlflowClient, run_id: str, operation: Dataset) -> None:
        from mlflow.data.http_dataset_source import HTTPDatasetSource
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag

        source = HTTPDatasetSource(url=operation["url"])
        dataset = MetaDataset(source, operation["name"], operation["digest"][:36])  # type: ignore[abstract]
        tags = [InputTag("mlflow.data.context", operation["context"])]
        client.log_inputs(run_id, [DatasetInput(dataset._to_mlflow_entity(), tags)])

    def _log_model(self, client: MlflowClient, run_id: str, operation: Model) -> None:
        """A model that is a pointer to the checkpoint, and a version of it where the recipe wants one registered."""
        run = client.get_run(run_id)
        experiment, about = run.info.experiment_id, {"uri": operation["uri"], **operation["about"]}
        known = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
        if any(model.params == about for model in known):
            return  # a finished run that was started again
        name = self._run_name.replace(".", "-")  # allowed in a run's name, refused in a model's
        model = client.create_logged_model(
            experiment, name, run_id, tags=self._tags, params=about, model_type="fleximoe"
        )
        from mlflow.entities import Metric

        points = [
            Metric(key, value, operation["time"], int(about.get("step", 0)), model_id=model.model_id, run_id=run_id)
            for key, value in operation["metrics"].items()
        ]
        client.log_batch(run_id, metrics=points)
        client.finalize_logged_model(model.model_id, "READY")
        if self._config.register_as is not None:
            register_version(client, self._config.register_as, run_id, about, model.model_id)
