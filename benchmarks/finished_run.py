"""What a run left behind, read to judge it: its last checkpoint, the records that it was given, its end in MLflow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import fsspec

from trainer.checkpoints.checkpoint import Checkpoint, read_checkpoint
from trainer.checkpoints.find import committed_paths
from trainer.tracking.mlflow_client import tracking_client


def newest_checkpoint(run_dir: str) -> Checkpoint:
    """The newest committed checkpoint of a run. Raises CheckpointError if its description is damaged."""
    return read_checkpoint(fsspec.url_to_fs(run_dir)[0], committed_paths(run_dir)[0])


def lost_and_repeated(epochs: dict[int, Counter[str]], names: Iterable[str]) -> tuple[int, int]:
    """Samples (`ShardIndex.names`) missing from an epoch, and deliveries beyond the first, summed over epochs."""
    expected = set(names)
    lost = sum(len(expected - counts.keys()) for counts in epochs.values())
    return lost, sum(counts.total() - len(counts) for counts in epochs.values())


def run_status(uri: str, run_id: str) -> str:
    """RUNNING, FINISHED, FAILED or KILLED."""
    return str(tracking_client(uri).get_run(run_id).info.status)
