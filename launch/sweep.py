"""The verb `sweep`: many runs of a recipe over a space, placed by Ray Tune, compared and kept as one MLflow parent run.

A sweep is its folder: the trials are numbered in a fixed order and each is a run of that number's name. The same
command again continues it: finished trials are read, stopped ones stay stopped, unfinished ones go on from their
checkpoints.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import fsspec

from launch.environment import prepare_for_ray, settle_paths
from launch.errors import RunFailedError, UsageError
from launch.output import print_json_line, print_table
from launch.run import check
from launch.space import SpaceConfig, Trial, load_space, trials
from launch.trial import evaluations, result_of, was_pruned
from trainer.checkpoints.find import open_checkpoint
from trainer.config.recipe import apply_overrides, load_recipe
from trainer.config.run_config import RunConfig, check_parallel
from trainer.tracking.create import create_tracker
from trainer.tracking.history import PARENT
from trainer.tracking.mlflow_models import register_checkpoint
from trainer.tracking.mlflow_run import open_run
from trainer.tracking.tracker import Tracker
from trainer.worker.provenance import source_tags

logger = logging.getLogger("fleximoe")

FILE = "sweep.json"


@dataclass(frozen=True)
class Sweep:
    """A space around a recipe, and the runs that it is made of.

    Attributes:
        config: of the whole; its run_dir is the sweep's folder. runs: the run of each trial.
    """

    config: RunConfig
    space: SpaceConfig
    metric: str
    mode: str
    trials: list[Trial]
    runs: list[RunConfig]


def sweep_recipe(recipe: str, space_name: str, overrides: Sequence[str], debug: bool) -> None:
    """Run or continue a sweep; prints the variants, best first, and the result as the last line.

    Raises:
        RecipeError, UsageError: a wrong recipe or space, or a folder that holds another sweep.
        RunFailedError: every trial failed, or a signal ended the sweep.
    """
    sweep = plan_sweep(recipe, space_name, overrides)
    check(sweep.runs[0])
    _claim(sweep)
    config = sweep.config
    prepare_for_ray(config)
    tags = {**source_tags(), "job_type": "sweep"}
    parent = open_run(config.tracking, config.name, tags, config.run_dir)
    for run, trial in zip(sweep.runs, sweep.trials, strict=True):
        extra = {PARENT: parent} if parent else {}
        run.tracking.tags = {
            **run.tracking.tags,
            **extra,
            "sweep.variant": trial.variant,
            "sweep.seed": str(trial.seed),
        }
    tracker = create_tracker(config.tracking, config.name, parent, tags, 0, config.run_dir)
    status = "KILLED"
    try:
        tracker.log_params({"space": sweep.space.model_dump(mode="json"), "trials": len(sweep.trials)})
        from launch.tune_trials import tune_trials

        failures, stopped_by = tune_trials(sweep, debug)
        result = summarise(sweep, failures)
        if stopped_by is None:
            _keep(sweep, result, tracker, parent)
            status = "FINISHED"
    finally:
        tracker.finish(status)  # type: ignore[arg-type]
    _print(sweep, result)
    print_json_line({**result, "run_id": parent})
    if stopped_by is not None:
        ended = sum(row["status"] in ("finished", "stopped") for row in result["trials"])
        raise RunFailedError(
            f"stopped after {ended} of {len(result['trials'])} trials; the same command continues the sweep", stopped_by
        )
    if not result["best"]:
        raise RunFailedError("no variant has finished with all its seeds; see the table")


def plan_sweep(recipe: str, space_name: str, overrides: Sequence[str]) -> Sweep:
    """Everything about a sweep before anything is started; mistakes in any trial's recipe are found here."""
    space = load_space(space_name)
    named = any(word.startswith("name=") for word in overrides)
    default = f"name={Path(recipe).stem}-{Path(space_name).stem}"
    config = settle_paths(load_recipe(recipe, [*([] if named else [default]), *overrides]))
    stopping = config.training.early_stopping
    metric, mode = space.metric or stopping.metric, space.mode or stopping.mode
    found = trials(space, config)
    runs = []
    for trial in found:
        name = f"name={config.name}-{trial.number:03d}"
        run = apply_overrides(config, [*trial.overrides, name, f"training.storage={config.run_dir}"])
        run.tracking.json_lines = True  # how a trial is followed
        run.tracking.spool = None
        run = settle_paths(run)
        check_parallel(run)
        runs.append(run)
    return Sweep(config, space, metric, mode, found, runs)


def _claim(sweep: Sweep) -> None:
    """Write down what this sweep is, or see that the folder holds this very sweep."""
    fs, root = fsspec.url_to_fs(sweep.config.run_dir)
    recipe = sweep.config.model_dump(mode="json", exclude={"tracking", "cluster", "evaluation"})
    words = [list(trial.overrides) for trial in sweep.trials]
    mine = {"metric": sweep.metric, "mode": sweep.mode, "trials": words, "recipe": recipe}
    if fs.exists(f"{root}/{FILE}"):
        if json.loads(fs.cat_file(f"{root}/{FILE}")) != mine:
            raise UsageError(
                f"{sweep.config.run_dir} holds a sweep of another recipe or space: give this one another name="
            )
        logger.info("continuing sweep %s", sweep.config.name)
        return
    fs.makedirs(root, exist_ok=True)
    fs.pipe_file(f"{root}/{FILE}", json.dumps(mine, indent=1).encode())


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
    result = result_of(run)
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
        "checkpoint": result["checkpoint"] if result else None,
        "test": result["metrics"] if result else {},
        "error": failed,
    }


def _keep(sweep: Sweep, result: dict[str, Any], tracker: Tracker, parent: str | None) -> None:
    """What a complete sweep leaves in MLflow; adds `registered` to the result."""
    result["registered"] = _register(sweep, result, parent)
    tracker.log_json("sweep_results.json", result)
    if result["best"]:
        tracker.log_metrics({f"best/{sweep.metric}": result["best"]["score"]}, 0)


def _register(sweep: Sweep, result: dict[str, Any], parent: str | None) -> str | None:
    """The best trial's checkpoint as a version of a model that is named like the sweep."""
    best = result["best"]
    if best is None or best["run_id"] is None:
        return None
    about = {"uri": best["checkpoint"], "parent_run": parent or "", sweep.metric: str(best["score"])}
    digest = open_checkpoint(best["checkpoint"]).meta["data_digest"]
    about |= {"variant": best["variant"], "seed": str(best["seed"]), "data.digest": digest}
    return register_checkpoint(sweep.config.tracking, sweep.config.name, best["run_id"], about)


def _print(sweep: Sweep, result: dict[str, Any]) -> None:
    rows = [
        (row["variant"], f"{row['finished']} of {row['trials']}", row["mean"], row["sd"]) for row in result["variants"]
    ]
    head = ("variant", "finished", f"best {sweep.metric}, mean over seeds", "sd")
    print_table(f"sweep {sweep.config.name}", head, rows)
    for row in result["trials"]:
        if row["error"]:
            logger.warning("trial %d (%s, seed %d): %s", row["trial"], row["variant"], row["seed"], row["error"])
