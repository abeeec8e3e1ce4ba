"""The best evaluation so far, and whether the run has waited long enough for a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.config.sections import EarlyStoppingConfig
from trainer.metrics.main_metric import Mode, choosing_mode, measured
from trainer.training.progress import Progress

KEY = "training.early_stopping."


def mode_of(config: EarlyStoppingConfig) -> Mode:
    """Which end of the metric is the best. Raises ValueError as `choosing_mode`."""
    return choosing_mode(config.metric, config.mode, KEY)


def ranking(config: EarlyStoppingConfig, moves: Sequence[Mapping[str, Any]] = ()) -> dict[str, str]:
    """What scores are made of, as a checkpoint stores it: those of one ranking compare, others do not.

    Args:
        moves: of a run that has left its data for a newer version.
    """
    return {"metric": config.metric, "mode": mode_of(config), **({"data": moves[-1]["to"]} if moves else {})}


def other_ranking(config: EarlyStoppingConfig, stored: dict[str, str] | None) -> str | None:
    """What to do, as a clause, if a run was ranked by something else so far; None if its scores still compare."""
    if stored is None:
        return None
    metric, mode = stored["metric"], stored["mode"]
    if {"metric": metric, "mode": mode} == ranking(config):
        return None
    keep = f", or keep {KEY}metric={metric} and {KEY}mode={mode}"
    try:
        mode_of(EarlyStoppingConfig.model_validate({"metric": metric, "mode": mode}))
    except ValueError:
        keep = ""  # an earlier version took what is refused now
    return (
        f"chose by {metric} ({mode}) so far, which does not compare with {config.metric} ({mode_of(config)}): give the "
        f"run another name{keep}"
    )


def score_of(config: EarlyStoppingConfig, metrics: dict[str, float]) -> float:
    """The metric that decides, turned so that larger is better; -inf where it is not a number.

    Raises:
        ValueError: it was not computed (names those that were), or cannot choose.
    """
    if config.metric not in metrics:
        there = ", ".join(measured(metrics)) or "none"
        raise ValueError(f"training.early_stopping.metric = {config.metric!r} is not computed; there are {there}")
    value = metrics[config.metric]
    if math.isnan(value):
        return -math.inf
    return value if mode_of(config) == "max" else -value


def record_evaluation(config: EarlyStoppingConfig, progress: Progress, metrics: dict[str, float]) -> None:
    """Remember the evaluation of this step: as the best one if it beats the best so far, else as one without gain.

    Raises:
        ValueError: the metric that decides was not computed; `progress` is as before.
    """
    score = score_of(config, metrics)
    progress.score, progress.evaluated_step = score, progress.step
    if progress.best_score is None or score > progress.best_score:
        progress.best_score, progress.best_step, progress.bad_evaluations = score, progress.step, 0
        progress.best_metrics = metrics
    else:
        progress.bad_evaluations += 1


def best_value(config: EarlyStoppingConfig, progress: Progress) -> float:
    """The metric of the best evaluation so far, in its own sense again; there has been an evaluation."""
    assert progress.best_score is not None
    return progress.best_score if mode_of(config) == "max" else -progress.best_score


def best_metrics(config: EarlyStoppingConfig, progress: Progress) -> dict[str, float]:
    """`best/...`: every metric of the best evaluation so far, and its step."""
    metrics = {f"best/{name}": value for name, value in progress.best_metrics.items()}
    # From the score, not from the metrics: where no evaluation gave a number, it is infinite and the metric NaN.
    metrics[f"best/{config.metric}"] = best_value(config, progress)
    metrics["best/step"] = float(progress.best_step or 0)
    return metrics


def out_of_patience(config: EarlyStoppingConfig, progress: Progress) -> bool:
    """Whether as many evaluations as the recipe bears went by without a better one."""
    return config.patience is not None and progress.bad_evaluations >= config.patience
