"""The tracker of this rank."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from data_shards.lease.lease import Guard, Unowned
from trainer.config.sections import TrackingConfig
from trainer.tracking.json_lines import JsonLinesSink
from trainer.tracking.mlflow_run import RunStore
from trainer.tracking.queued import QueuedSink
from trainer.tracking.spool import Spool
from trainer.tracking.tracker import Sink, Tracker


def create_tracker(
    config: TrackingConfig,
    run_name: str,
    run_id: str | None,
    tags: Mapping[str, str],
    rank: int,
    run_dir: str,
    guard: Guard | None = None,
) -> Tracker:
    """The tracker of this rank: MLflow and JSON lines as configured on rank 0, nothing elsewhere.

    `run_id` None: the id stored in `run_dir`, else a new run. `guard`: whether the name is still this process's own.
    """
    guard = guard or Unowned()
    sinks: list[Sink] = []
    if rank == 0 and config.mlflow:
        spool = Spool(Path(config.spool or tempfile.mkdtemp(prefix="mlflow_spool_")))
        sinks.append(QueuedSink(RunStore(config, run_name, run_id, tags, run_dir), spool, config.flush_seconds, guard))
    if rank == 0 and config.json_lines:
        sinks.append(JsonLinesSink(run_dir, guard))
    return Tracker(*sinks)
