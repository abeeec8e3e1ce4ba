"""Trials and variants of a sweep with their scores."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from launch.sweep.definition import Sweep
from launch.sweep.space import Trial
from launch.sweep.trial import evaluations, was_pruned
from trainer.config.run_config import RunConfig
from trainer.run_folder import stored_result


def summarise(sweep: Sweep, failures: dict[int, str]) -> dict[str, Any]:
    """Trials and variants with their scores, variants best first; `best` is a trial of the best complete variant."""
    rows = [_trial_row(sweep, trial, run, failures) for trial, run in zip(sweep.trials, sweep.runs, strict=True)]
    sign = 1 if sweep.mode == "max" else -1
    variants: list[dict[str, Any]] = []
    for label in dict.fromkeys(trial.variant for trial in sweep.trials):
        own = [row for row in rows if row["variant"] == label]
        scores = [row["score"] for row in own if row["status"] == "finished"]
        variants.append(
            {
                "variant": label,
                "mean": mean(scores) if scores else None,
                "sd": stdev(scores) if len(scores) > 1 else None,
                "finished": len(scores),
                "trials": len(own),
            }
        )
    variants.sort(key=lambda row: (row["finished"] < row["trials"], -sign * row["mean"] if row["finished"] else 0.0))
    best = None
    if variants[0]["finished"] == variants[0]["trials"]:
        own = [row for row in rows if row["variant"] == variants[0]["variant"]]
        best = max(own, key=lambda row: sign * row["score"])
    return {"name": sweep.config.name, "metric": sweep.metric, "variants": variants, "trials": rows, "best": best}


def _trial_row(sweep: Sweep, trial: Trial, run: RunConfig, failures: dict[int, str]) -> dict[str, Any]:
    values = list(evaluations(run, sweep.metric).values())
    result = stored_result(run.run_dir)
    failed = failures.get(trial.number)
    status = "finished" if result else "stopped" if was_pruned(run) else "failed" if failed else "unfinished"
    pick = max if sweep.mode == "max" else min
    return {
        "trial": trial.number,
        "variant": trial.variant,
        "seed": trial.seed,
        "status": status,
        "score": pick(values) if values else None,
        "evaluations": len(values),
        "run_id": result["run_id"] if result else None,
        "mlflow": result.get("mlflow") if result else None,
        "checkpoint": result["checkpoint"] if result else None,
        "test": result["metrics"] if result else {},
        "error": failed,
    }
