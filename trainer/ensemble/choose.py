"""The weight of a second opinion, chosen on the validation part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_shards import TaskSpec
from trainer.ensemble.combine import mean_logits
from trainer.metrics.bootstrap.intervals import Array, draw_weights, over_moments
from trainer.metrics.bootstrap.measures import task_measures
from trainer.metrics.by_record import record_rows
from trainer.metrics.main_metric import larger_is_better, primary_metric
from trainer.metrics.predictions import Predictions
from trainer.metrics.scores import part_metrics

GRID = tuple(number / 20 for number in range(21))
DRAWS = 200


@dataclass(frozen=True)
class Choice:
    """Attributes: metric: of validation, that chose. weight: of the second opinion. best: that of the best metric.
    scores: weight -> metric."""

    metric: str
    weight: float
    best: float
    scores: dict[float, float]


def choose_weight(task: TaskSpec, runs: Sequence[Predictions], blend: Predictions) -> Choice:
    """How much the blend counts beside the equal mean of the runs, by the task's main metric.

    Of weights that validation cannot tell from the best one, that is, whose metric is less than one standard error of
    the difference behind, by draws of its records, the one nearest to one half is taken: there both opinions count. A
    curve over weights is flat at its top, and where exactly it is largest is chance.

    Raises ValueError: validation has no metric of this task.
    """
    own = [said.logits[task.name] for said in runs]
    equal, target_Bt = mean_logits(task, own, [1 / len(own)] * len(own)), blend.targets[task.name]
    logits = {weight: mean_logits(task, [equal, blend.logits[task.name]], [1 - weight, weight]) for weight in GRID}
    metrics = part_metrics(
        "val", [task], Predictions(blend.index_B, {task.name: equal}, {task.name: target_Bt}, moment_B=blend.moment_B)
    )
    metric = primary_metric("val", metrics)
    row_B = record_rows(blend.index_B)
    weight_RG = draw_weights(int(row_B.max()) + 1, DRAWS)
    drawn = {
        weight: over_moments(task_measures(task, own, target_Bt)[metric.rsplit("/", 1)[-1]], row_B)(weight_RG)
        for weight, own in logits.items()
    }
    sign = 1 if larger_is_better(metric) else -1
    best, weight = _chosen({weight: sign * values_R for weight, values_R in drawn.items()})
    return Choice(metric, weight, best, {weight: float(values_R[0]) for weight, values_R in drawn.items()})


def _chosen(drawn: Mapping[float, Array]) -> tuple[float, float]:
    """The best weight, and the one to take. Of each the metric, larger is better: of the part, then of each draw."""
    ranked = {weight: np.nan_to_num(values_R[0], nan=-np.inf) for weight, values_R in drawn.items()}
    best = max(ranked, key=lambda weight: (ranked[weight], -abs(weight - 0.5)))

    def is_near(weight: float) -> bool:
        apart_R = drawn[best] - drawn[weight]
        known_R = apart_R[1:][np.isfinite(apart_R[1:])]
        return bool(apart_R[0] <= (known_R.std() if len(known_R) else 0.0))

    near = [weight for weight in drawn if weight == best or is_near(weight)]
    return best, min(near, key=lambda weight: (abs(weight - 0.5), abs(weight - best)))
