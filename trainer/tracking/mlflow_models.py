"""Registered models in MLflow: versions that point at checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from trainer.config.sections import TrackingConfig
from trainer.tracking.mlflow_client import brief, tracking_client

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)


def register_version(
    client: MlflowClient, name: str, run_id: str, about: Mapping[str, str], model_id: str | None = None
) -> str:
    """A new version of a registered model, which points at a checkpoint and says what it comes from; its number."""
    if not client.search_registered_models(filter_string=f"name = '{name}'"):
        client.create_registered_model(name)
    version = client.create_model_version(name, about["uri"], run_id, tags=dict(about), model_id=model_id)
    return str(version.version)


def register_checkpoint(config: TrackingConfig, name: str, run_id: str, about: Mapping[str, str]) -> str | None:
    """A version of a registered model for a run's checkpoint, once; None, with a warning, if MLflow cannot be reached.

    Args:
        about: `uri` of the checkpoint, and what else the version is to say of itself.
    """
    if not config.mlflow:
        return None
    try:
        client = tracking_client(config.uri)
        for known in client.search_model_versions(f"name = '{name}'"):
            if known.source == about["uri"]:
                return f"{name} version {known.version}"
        return f"{name} version {register_version(client, name, run_id, about)}"
    except Exception as error:
        logger.warning("model %s could not be registered (%s)", name, brief(error))
        return None
