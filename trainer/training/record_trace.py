"""Which samples each rank was given at each step, on disk: the proof that none was lost and none repeated.

A sample is named by its record's key, and by its moment where records are seen at moments (`Batch.names`).

One JSON line a step in `<run>/records/rank-NNNNN.jsonl`, written before the step's result is used anywhere. After a
restart the steps since the checkpoint are written again; the last line of a step is the one that counts.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from data_shards.lease.lease import Guard
from data_shards.paths import absolute_path, is_local
from trainer.worker.guarded_lines import GuardedLines

FOLDER = "records"


class RecordTrace:
    """Appends what this rank was given. Raises ValueError if the run is not stored on a file system."""

    def __init__(self, run_dir: str, rank: int, world: int, guard: Guard) -> None:
        if not is_local(run_dir):
            raise ValueError(
                f"training.trace_records needs a run stored in a folder, not in {run_dir}: object stores cannot append"
            )
        folder = absolute_path(run_dir) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self._world = world
        self._file = GuardedLines(folder / f"rank-{rank:05d}.jsonl", guard)

    def write(self, step: int, epoch: int, keys: list[str]) -> None:
        """Samples of optimiser step `step` (from 1) of `epoch`, by name."""
        self._file.write(json.dumps({"step": step, "epoch": epoch, "world": self._world, "keys": keys}) + "\n")

    def close(self) -> None:
        self._file.close()


def delivered(run_dir: str) -> dict[int, Counter[str]]:
    """How often each sample was delivered in each epoch, by the steps that made it into the final weights."""
    steps: dict[tuple[int, int], tuple[int, int, list[str]]] = {}
    for number, path in enumerate(sorted((Path(run_dir) / FOLDER).glob("rank-*.jsonl"))):
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            steps[entry["step"], number] = (entry["epoch"], entry["world"], entry["keys"])
    epochs: dict[int, Counter[str]] = {}
    for (step, rank), (epoch, world, keys) in steps.items():
        # A rank that the last attempt at this step did not have left a line of an earlier attempt.
        if rank < world and world == steps[step, 0][1]:
            epochs.setdefault(epoch, Counter()).update(keys)
    return epochs
