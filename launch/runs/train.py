"""The verbs `train`, `finetune` and `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_shards.lease.record import Parent
from data_shards.paths import absolute_url
from launch.cluster.environment import prepare_for_ray, settle_paths
from launch.errors import RunFailedError, UsageError
from launch.output.tables import print_json_line, print_metrics, print_table
from launch.runs.checks import check
from launch.runs.ensemble import measure_together
from launch.runs.requests import without_checkpoint
from trainer.config.job_types import known_job_types
from trainer.config.recipe import apply_overrides, load_recipe
from trainer.config.run_config import RunConfig
from trainer.models.job_type import job_type
from trainer.worker.provenance import source_tags


def train_recipe(recipe: str, overrides: Sequence[str], debug: bool, under: str | None = None) -> None:
    """Train a recipe on Ray; prints the result as the last line. Leaves with 128 + n if signal n stopped it.

    `under`: of a trial, the lease of its sweep, as JSON. Raises LeaseHeldError: the run is at work.
    """
    config = settle_paths(load_recipe(recipe, overrides))
    check(config)
    _finish(config, run_on_ray(config, debug, Parent.from_json(under) if under else None))


def finetune_recipe(recipe: str, overrides: Sequence[str], debug: bool) -> None:
    """Fine-tune prompts on a frozen backbone, on Ray like training."""
    config = settle_paths(load_recipe(recipe, overrides))
    job = job_type(config.job)
    if job.verb != "finetune":
        takes = " or ".join(name for name in known_job_types() if job_type(name).verb == "finetune")
        raise UsageError(f"recipe {recipe} has job: {config.job}, which is for train; finetune takes job: {takes}")
    check(job.resolve(config))
    _finish(config, run_on_ray(config, debug))


def evaluate_run(
    checkpoint: str,
    data: str | None,
    part: str,
    drop: Sequence[str],
    overrides: Sequence[str],
    debug: bool,
    **wishes: bool,
) -> None:
    """Evaluate a checkpoint in this process, or on Ray with parallel.workers=N; prints the result as the last line."""
    # `--drop a b` reads naturally, and leaves `b` among the overrides.
    words = [word for word in overrides if "=" not in word]
    if words and not drop:
        raise UsageError(f"unexpected {words[0]!r}: overrides are section.key=value, modalities follow --drop")
    changes = [word for word in overrides if "=" in word]
    url = absolute_url(checkpoint)
    if without_checkpoint(url):
        print_json_line(measure_together(url, data, part, [*drop, *words], changes, **wishes))
        return
    config = evaluation_of(checkpoint, data, part, [*drop, *words], changes, **wishes)
    _finish(config, run_here_or_on_ray(config, debug))


def evaluation_of(
    checkpoint: str, data: str | None, part: str, drop: Sequence[str], overrides: Sequence[str] = (), **wishes: bool
) -> RunConfig:
    """An evaluation of a checkpoint, or of a run's best one, by one process unless overrides ask for more."""
    from trainer.checkpoints.evaluation_recipe import evaluation_config
    from trainer.checkpoints.find import open_checkpoint

    config = evaluation_config(open_checkpoint(absolute_url(checkpoint)), data, part, list(drop), **wishes)
    # A checkpoint does not depend on how many workers wrote it, so one is enough unless more are asked for.
    return settle_paths(apply_overrides(config, ["parallel.workers=1", "parallel.expert_parallel=1", *overrides]))


def run_here_or_on_ray(config: RunConfig, debug: bool = False) -> dict[str, Any]:
    """What a run gives: trained or evaluated in this process, without Ray, unless it asks for more workers than one.

    SIGTERM and SIGINT end a training with a checkpoint; `status` of its result is then "stopped", and `signal` which.
    """
    check(config if config.evaluates else job_type(config.job).resolve(config))
    if config.parallel.workers > 1:
        return run_on_ray(config, debug)
    from trainer.jobs.job import run
    from trainer.worker.context import SingleContext, StopOnSignal

    if config.evaluates:
        return run(config, SingleContext())
    with StopOnSignal() as stop:
        result = run(config, SingleContext(stop=stop), source_tags())
    return {**result, "signal": stop.received} if result["status"] == "stopped" else result


def run_on_ray(config: RunConfig, debug: bool, under: Parent | None = None) -> dict[str, Any]:
    """The same by workers on Ray: the one that the run names, else a local one for as long as this takes."""
    prepare_for_ray(config)
    from launch.ray_train.driver import evaluate_on_ray, train_on_ray

    return evaluate_on_ray(config, debug) if config.evaluates else train_on_ray(config, debug, under)


def _finish(config: RunConfig, result: Mapping[str, Any]) -> None:
    """Table, JSON line, and the exit code of a stopped run."""
    if result["metrics"]:
        print_metrics(f"{config.name}  {result.get('checkpoint') or ''}", result["metrics"])
    if result.get("calibrated"):
        print_metrics(f"with temperatures {result['temperatures']}, fitted on val", result["calibrated"])
    if result.get("missing_curve"):
        _print_curve(result["missing_curve"])
    print_json_line(result)
    refuse_stopped(config, result)


def refuse_stopped(config: RunConfig, result: Mapping[str, Any]) -> None:
    """Raise RunFailedError for a run that a signal has stopped."""
    if result.get("status") == "stopped":
        raise RunFailedError(
            f"stopped at step {result.get('step')} with a checkpoint; the same command with name={config.name} "
            "continues the run",
            stopped_by=result["signal"],
        )


def _print_curve(curve: Mapping[str, Any]) -> None:
    """The tables behind the figure, for each task; it lies in the run's folder."""
    from trainer.metrics.main_metric import HIDDEN, by_rate, task_curves

    for task in task_curves(dict(curve)):
        metric = task["metric"]
        for what, title in HIDDEN.items():
            rows = [(f"{rate:.0%}", *values) for rate, *values in by_rate(task, what)]
            if rows:
                print_table(title, (what, f"{metric}, mean", "smallest", "largest"), rows)
        whole = task["whole"][metric]
        left = [(row["modality"], row["metrics"].get(metric, whole)) for row in task["without"]]
        changes = sorted([(name, value, value - whole) for name, value in left], key=lambda row: row[2])
        print_table("one modality removed", ("without", metric, "change"), changes)
