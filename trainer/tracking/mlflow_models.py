"""Models in MLflow: pointers at checkpoints, and versions of registered models that say where they come from.

A version whose run has exported its model holds that, and `mlflow.pyfunc` loads it; any other is a pointer.

Every step looks first whether it has been done, so that what was cut off can be done again.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec

from trainer.config.sections import TrackingConfig
from trainer.run_folder import MLFLOW_FORM
from trainer.tracking.failures import Remarks
from trainer.tracking.mlflow_batches import Batches
from trainer.tracking.mlflow_client import explain, tracking_client
from trainer.tracking.operations import Model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

logger = logging.getLogger(__name__)

FILLED = "fleximoe.export"  # tag of a model: the export that its artifacts are, once they are all there


def log_model(
    client: MlflowClient,
    batches: Batches,
    run_id: str,
    run_name: str,
    told: Model,
    tags: Mapping[str, str],
    register_as: str | None,
    remarks: Remarks,
) -> None:
    """A model that is a pointer to the checkpoint, and a version of it where the recipe wants one registered."""
    from mlflow.entities import Metric

    run = client.get_run(run_id)
    experiment = run.info.experiment_id
    about = {"uri": told["uri"], **told["about"]}
    known = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    model = next((model for model in known if model.params == about), None)
    if model is None:
        name = re.sub(r"""[/:.%"']""", "-", run_name)  # allowed in a run's name, refused in a model's
        model = client.create_logged_model(
            experiment, name, run_id, tags=dict(tags), params=about, model_type="fleximoe"
        )
    export = told.get("export")
    source = about["uri"]
    if register_as is not None and export is not None:
        source = _filled(client, model, export) or source
        if source == about["uri"]:
            remarks.add(f"{export} is gone, so the version of {register_as} only points at the checkpoint")
    if model.status != "READY":
        # MLflow adds a model's metrics to its run's curves: a point that is there already must be that very point.
        logged = {(metric.key, metric.value): metric for metric in run.data.to_proto().metrics}
        points = []
        for key, value in told["metrics"].items():
            same = logged.get((key, value))
            time_ms, step = (same.timestamp, same.step) if same else (told["time"], int(about.get("step", 0)))
            points.append(Metric(key, value, time_ms, step, model_id=model.model_id, run_id=run_id))
        batches.metrics(points)
        client.finalize_logged_model(model.model_id, "READY")
    if register_as is not None:
        _version(client, register_as, run_id, about, source, model.model_id)


def register_checkpoint(
    config: TrackingConfig, name: str, run_id: str, about: Mapping[str, str], export: str | None = None
) -> str | None:
    """A version of a registered model for a run's checkpoint, once; None, with a warning, if MLflow does not take it.

    Args:
        about: `uri` of the checkpoint, and what else the version is to say of itself. export: see `Tracker.log_model`.
    """
    if not config.mlflow:
        return None
    try:
        client = tracking_client(config.uri)
        experiment = client.get_run(run_id).info.experiment_id
        known = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
        model = next((model for model in known if (model.params or {}).get("uri") == about["uri"]), None)
        source = _filled(client, model, export) if model is not None and export is not None else None
        model_id = model.model_id if model is not None else None
        number = _version(client, name, run_id, about, source or about["uri"], model_id if source else None)
        return f"{name} version {number}"
    except Exception as error:
        logger.warning("model %s could not be registered (%s)", name, explain(error, config.uri))
        return None


def _filled(client: MlflowClient, model: LoggedModel, export: str) -> str | None:
    """The place of a model whose artifacts are the export as MLflow loads it; None if the export is gone."""
    from trainer.tracking.mlflow_pyfunc.save import save_pyfunc

    location = str(model.artifact_location)
    if (model.tags or {}).get(FILLED) == export:
        return location
    fs, root = fsspec.url_to_fs(export)
    if not fs.exists(f"{root}/{MLFLOW_FORM}"):
        return None
    with tempfile.TemporaryDirectory(prefix="fleximoe-registered-") as home:
        local, made = Path(home) / "export", Path(home) / "made"
        fs.get(root, str(local), recursive=True)
        save_pyfunc(local, made)
        client.log_model_artifacts(model.model_id, str(made))
    client.set_logged_model_tags(model.model_id, {FILLED: export})
    return location


def _version(
    client: MlflowClient, name: str, run_id: str, about: Mapping[str, str], source: str, model_id: str | None = None
) -> str:
    """The number of the version of a registered model with this checkpoint and source, made if there is none yet."""
    from mlflow.exceptions import MlflowException

    for known in client.search_model_versions(f"name = '{name}'"):
        if known.source == source and known.tags.get("uri", source) == about["uri"]:
            return str(known.version)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return str(client.create_model_version(name, source, run_id, tags=dict(about), model_id=model_id).version)
