"""The verb `sweep`: many runs of a recipe over a space, placed by Ray Tune, compared and kept as one MLflow parent run.

A sweep is its folder: the trials are numbered in a fixed order and each is a run of that number's name. The same
command again continues it: finished trials are read, stopped ones stay stopped, unfinished ones go on from their
checkpoints.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from data_shards.lease.lease import Lease, take
from launch.cluster.environment import prepare_for_ray
from launch.errors import RunFailedError
from launch.output.tables import print_json_line, print_table
from launch.runs.checks import check
from launch.sweep.definition import Sweep, claim, plan_sweep
from launch.sweep.results import summarise
from trainer.checkpoints.find import open_checkpoint
from trainer.inference.portable.registered import write_registered
from trainer.run_folder import REGISTERED, SWEEP_RESULTS, stored_run_id, write_json
from trainer.tracking.create import create_tracker
from trainer.tracking.history import PARENT
from trainer.tracking.mlflow_models import register_checkpoint
from trainer.tracking.mlflow_run import open_run
from trainer.tracking.tracker import Tracker
from trainer.worker.provenance import source_tags

logger = logging.getLogger("fleximoe")


def sweep_recipe(recipe: str, space_name: str, overrides: Sequence[str], debug: bool) -> None:
    """Run or continue a sweep; prints the variants, best first, and the result as the last line.

    Raises:
        RecipeError, UsageError: a wrong recipe or space, or a folder that holds another sweep.
        LeaseHeldError: the sweep is at work. LeaseLostError: another process has taken it over.
        RunFailedError: every trial failed, or a signal ended the sweep.
    """
    sweep = plan_sweep(recipe, space_name, overrides)
    check(sweep.runs[0])
    config = sweep.config
    what, advice = f"sweep {config.name}", "give this sweep another name="
    with take(config.run_dir, what, advice, lease_s=config.training.lease_s) as lease:
        _sweep(sweep, lease, debug)


def _sweep(sweep: Sweep, lease: Lease, debug: bool) -> None:
    claim(sweep)
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
    tracker = create_tracker(config.tracking, config.name, parent, tags, 0, config.run_dir, lease)
    status = "KILLED"
    try:
        tracker.log_params({"space": sweep.space.model_dump(mode="json"), "trials": len(sweep.trials)})
        from launch.sweep.tune import tune_trials

        failures, stopped_by = tune_trials(sweep, lease, debug)
        result = summarise(sweep, failures)
        lease.confirm()
        if stopped_by is None:
            _keep(sweep, result, tracker, parent)
            status = "FINISHED"
    finally:
        tracker.finish(status)  # type: ignore[arg-type]
    run_id = tracker.run_id or stored_run_id(config.run_dir, config.tracking.uri)  # known, if not open: deleted
    _print(sweep, result)
    print_json_line({**result, "run_id": run_id, "mlflow": tracker.delivery})
    if stopped_by is not None:
        ended = sum(row["status"] in ("finished", "stopped") for row in result["trials"])
        raise RunFailedError(
            f"stopped after {ended} of {len(result['trials'])} trials; the same command continues the sweep", stopped_by
        )
    if not result["best"]:
        raise RunFailedError("no variant has finished with all its seeds; see the table")


def _keep(sweep: Sweep, result: dict[str, Any], tracker: Tracker, parent: str | None) -> None:
    """What a complete sweep leaves in MLflow; adds `registered` to the result."""
    result["registered"] = _register(sweep, result, parent)
    tracker.log_json(SWEEP_RESULTS, result)
    write_json(sweep.config.run_dir, SWEEP_RESULTS, result)  # where `ensemble` finds it, with or without MLflow
    if result["best"]:
        tracker.log_metrics({f"best/{sweep.metric}": result["best"]["score"]}, 0)


def _register(sweep: Sweep, result: dict[str, Any], parent: str | None) -> str | None:
    """The best trial's checkpoint as a version of a model that is named like the sweep."""
    best = result["best"]
    if best is None or not sweep.config.tracking.mlflow:
        return None
    if best["run_id"] is None:
        logger.warning("the best trial is not in MLflow (%s), so no model is registered", best["mlflow"])
        return None
    about = {"uri": best["checkpoint"], "parent_run": parent or "", sweep.metric: str(best["score"])}
    digest = open_checkpoint(best["checkpoint"]).meta["data_digest"]
    about |= {"variant": best["variant"], "seed": str(best["seed"]), "data.digest": digest}
    export = write_registered(best["checkpoint"], f"{sweep.config.run_dir}/{REGISTERED}")
    return register_checkpoint(sweep.config.tracking, sweep.config.name, best["run_id"], about, export)


def _print(sweep: Sweep, result: dict[str, Any]) -> None:
    rows = [
        (row["variant"], f"{row['finished']} of {row['trials']}", row["mean"], row["sd"]) for row in result["variants"]
    ]
    head = ("variant", "finished", f"best {sweep.metric}, mean over seeds", "sd")
    print_table(f"sweep {sweep.config.name}", head, rows)
    for row in result["trials"]:
        if row["error"]:
            logger.warning("trial %d (%s, seed %d): %s", row["trial"], row["variant"], row["seed"], row["error"])
