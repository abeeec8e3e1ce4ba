"""A client of MLflow that gives up within seconds."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient


def tracking_client(uri: str | None) -> MlflowClient:
    """A client that gives up within seconds: what fails is spooled, not waited for."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    }.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # we say ourselves, and once
    return MlflowClient(tracking_uri=uri)


def brief(error: Exception) -> str:
    return str(error).strip().split("\n")[0].split(" failed with exception")[0][:200]


def metric_history(uri: str, run_id: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of every point of a run's metric, in the order of the steps."""
    points = tracking_client(uri).get_metric_history(run_id, metric)
    return sorted((point.step, point.value) for point in points)
