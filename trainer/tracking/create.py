"""The tracker of this rank."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.config.sections import TrackingConfig
from trainer.tracking.json_lines import JsonLinesTracker
from trainer.tracking.mlflow_run import MLflowTracker
from trainer.tracking.tracker import MultiTracker, NullTracker, Tracker


def create_tracker(
    config: TrackingConfig, run_name: str, run_id: str | None, tags: Mapping[str, str], rank: int, run_dir: str
) -> Tracker:
    """The tracker of this rank: MLflow and JSON lines as configured on rank 0, nothing elsewhere.

    `run_id` None: the id stored in `run_dir`, else a new run.
    """
    if rank != 0:
        return NullTracker()
    trackers: list[Tracker] = []
    if config.mlflow:
        trackers.append(MLflowTracker(config, run_name, run_id, tags, run_dir))
    if config.json_lines:
        trackers.append(JsonLinesTracker(run_dir))
    return trackers[0] if len(trackers) == 1 else MultiTracker(trackers)
