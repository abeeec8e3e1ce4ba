"""The tracker of this rank."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_shards.lease.lease import Guard, Unowned
from trainer.config.sections import TrackingConfig
from trainer.tracking.json_lines import JsonLinesSink
from trainer.tracking.mlflow_run import RunStore
from trainer.tracking.queued import QueuedSink
from trainer.tracking.spool import Spool
from trainer.tracking.tracker import Sink, Tracker, now_ms


def create_tracker(
    config: TrackingConfig,
    run_name: str,
    run_id: str | None,
    tags: Mapping[str, str],
    rank: int,
    run_dir: str,
    guard: Guard | None = None,
) -> Tracker:
    """The tracker of this rank: MLflow, JSON lines and others as configured on rank 0, nothing elsewhere.

    `run_id` None: the id stored in `run_dir`, else a new run. `guard`: whether the name is still this process's own.
    Raises ValueError: a tracker that is asked for is not installed, or cannot write there.
    """
    guard = guard or Unowned()
    sinks: list[Sink] = []
    if rank == 0 and config.mlflow:
        spool = Spool(Path(config.spool or tempfile.mkdtemp(prefix="mlflow_spool_")))
        sinks.append(QueuedSink(RunStore(config, run_name, run_id, tags, run_dir), spool, config.flush_seconds, guard))
    files = list(_files(config, run_name, run_dir, guard)) if rank == 0 else []
    # MLflow has them from the run's first moment on; its own names of them mean nothing elsewhere.
    own = {name: value for name, value in tags.items() if not name.startswith("mlflow.")}
    for sink in files if own else ():
        sink.take({"op": "tags", "values": own, "time": now_ms()})
    return Tracker(*sinks, *files)


def _files(config: TrackingConfig, run_name: str, run_dir: str, guard: Guard) -> Iterator[Sink]:
    if config.json_lines:
        yield JsonLinesSink(run_dir, guard)
    if config.tensorboard:
        from trainer.tracking.elsewhere.tensorboard_events import TensorBoardSink  # an extra, as the next one

        yield TensorBoardSink(run_dir, guard)
    if config.wandb:
        from trainer.tracking.elsewhere.wandb_offline import WandbSink

        yield WandbSink(config.wandb, run_name, run_dir, guard)
