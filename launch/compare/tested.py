"""What each run was tested on, and whether two runs' metrics can be held against each other at all.

They can if data, split, records, labels and question are the same. What is not known of a run (it kept no predictions)
is not held against it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from data_shards import TaskSpec
from trainer.metrics.prediction_table import read_predictions
from trainer.metrics.predictions import Predictions
from trainer.run_folder import STRETCHES, TEST_PREDICTIONS
from trainer.tracking.history import TrackedRun

# What makes the loss of two runs two quantities.
OF_THE_LOSS = ("training.task_weights", "training.class_weighting")


@dataclass(frozen=True)
class Kept:
    """Test predictions that a run kept."""

    tasks: list[TaskSpec]
    predictions: Predictions

    @property
    def numbers(self) -> tuple[bytes, ...]:
        """Of the records, and their moments."""
        columns = (self.predictions.index_B, self.predictions.moment_B)
        return tuple(column.numpy().tobytes() for column in columns if column is not None)

    def question(self, metric: str) -> tuple[TaskSpec, ...]:
        """The tasks that a metric is about: of one, or, as a loss is, of all."""
        named = [task for task in self.tasks if metric.startswith(f"test/{task.name}/")]
        return tuple(named or self.tasks)

    def labels(self, metric: str) -> str:
        """Digest of the labels that the metric is about."""
        digest = hashlib.sha256()
        for task in self.question(metric):
            digest.update(task.name.encode() + self.predictions.targets[task.name].numpy().tobytes())
        return digest.hexdigest()


def kept_of(run: TrackedRun) -> Kept | None:
    """The predictions that a run kept; None if it kept none. Raises ValueError: the file is none of ours."""
    file = run.artifact(TEST_PREDICTIONS)
    return None if file is None else Kept(*read_predictions(file))


def why_none(run: TrackedRun) -> str:
    """In words: why there are no predictions of a run to draw from; the end of a sentence that begins with its name."""
    most = int(run.params.get("training.gathered_samples", 0))
    samples = int(run.metrics.get("test/moments", run.metrics.get("test/records", 0)))
    if not 0 < most < samples:
        return "kept no test predictions"
    return (
        f"tested {samples:,} samples, more than training.gathered_samples ({most:,}): its predictions lie in its "
        f"folder, in {STRETCHES}/test, a file of each worker, and are not read back"
    )


def why_not(first: TrackedRun, second: TrackedRun, kept: dict[str, Kept | None], metric: str) -> str | None:
    """In words: what keeps two runs' values of a metric from being compared; None for nothing.

    Args:
        kept: id of a run -> its predictions.
    """
    if first.params.get("dataset.digest") != second.params.get("dataset.digest"):
        return "on different data sets"
    if first.params.get("data.split") != second.params.get("data.split"):
        return "on different splits of the data"
    if metric.endswith("/loss") and _of_the_loss(first) != _of_the_loss(second):
        return "by losses that are weighted differently"
    one, two = kept[first.id], kept[second.id]
    if one is None or two is None:
        told = metric.count("/") > 1 or first.params.get("training.tasks") == second.params.get("training.tasks")
        return None if told else "on different tasks"
    if one.question(metric) != two.question(metric):
        return "on different tasks"
    if one.numbers != two.numbers:
        return "on different sets of records"
    return None if one.labels(metric) == two.labels(metric) else "on different labels"


def _of_the_loss(run: TrackedRun) -> dict[str, str]:
    return {key: value for key, value in run.params.items() if key.startswith(OF_THE_LOSS)}


def all_comparable(runs: Sequence[TrackedRun], kept: dict[str, Kept | None], metric: str) -> bool:
    """Whether every two of the runs can be compared."""
    return all(why_not(first, second, kept, metric) is None for first, second in combinations(runs, 2))


def why_not_notes(runs: Sequence[TrackedRun], kept: dict[str, Kept | None], metric: str) -> list[str]:
    """A sentence for each reason that keeps some of the runs apart."""
    found: dict[str, tuple[TrackedRun, TrackedRun]] = {}
    for first, second in combinations(runs, 2):
        reason = why_not(first, second, kept, metric)
        if reason is not None:
            found.setdefault(reason, (first, second))
    return [
        f"Runs were measured {reason} (e.g. {first.name} and {second.name}): their values of {metric} do not compare."
        for reason, (first, second) in found.items()
    ]
