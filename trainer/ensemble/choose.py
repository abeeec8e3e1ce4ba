"""The weight of a second opinion, chosen on the validation part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from data_shards import TaskSpec
from trainer.ensemble.combine import mean_logits
from trainer.metrics.main_metric import larger_is_better, primary_metric
from trainer.metrics.predictions import Predictions
from trainer.metrics.scores import part_metrics

GRID = tuple(number / 20 for number in range(21))


@dataclass(frozen=True)
class Choice:
    """Attributes: metric: of validation, that chose. weight: of the second opinion. scores: weight -> metric."""

    metric: str
    weight: float
    scores: dict[float, float]


def choose_weight(task: TaskSpec, runs: Sequence[Predictions], blend: Predictions) -> Choice:
    """How much the blend counts beside the equal mean of the runs, by the task's main metric.

    Of weights that are equally good the one nearest to one half is taken: there both opinions count.

    Raises ValueError: validation has no metric of this task.
    """
    own = [said.logits[task.name] for said in runs]
    equal = mean_logits(task, own, [1 / len(own)] * len(own))
    scores: dict[float, float] = {}
    metric = ""
    for weight in GRID:
        logits = mean_logits(task, [equal, blend.logits[task.name]], [1 - weight, weight])
        said = Predictions(
            blend.index_B, {task.name: logits}, {task.name: blend.targets[task.name]}, moment_B=blend.moment_B
        )
        metrics = part_metrics("val", [task], said)
        metric = primary_metric("val", metrics)
        scores[weight] = metrics[metric]
    sign = 1 if larger_is_better(metric) else -1
    best = max(GRID, key=lambda weight: (_finite(sign * scores[weight]), -abs(weight - 0.5)))
    return Choice(metric, best, scores)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
