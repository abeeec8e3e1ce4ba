"""A baseline as a run: learned from the training part, chosen by validation, measured on test, kept and tracked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_shards import DataConfig, Manifest
from data_shards.lease.lease import Guard
from trainer.baseline.features.layout import Layout
from trainer.baseline.features.table import Table, Told, frequent_codes, read_table, varying
from trainer.baseline.learners.families import Family, learner_of
from trainer.baseline.learners.task_model import learn
from trainer.baseline.stored import Baseline, write_baseline
from trainer.config.run_config import RunConfig
from trainer.metrics.predictions import Predictions
from trainer.metrics.scores import part_metrics
from trainer.run_folder import CONFIG, REQUIREMENTS, RESULT, write_json
from trainer.run_lease import take_run
from trainer.tracking.create import create_tracker
from trainer.tracking.tracker import Tracker
from trainer.worker.provenance import environment_lock

logger = logging.getLogger("fleximoe")

JOB = "baseline"


@dataclass(frozen=True)
class Tables:
    """All parts of a split that are used, read once for all families."""

    layout: Layout
    column_X: np.ndarray
    """Columns of the layout that differ between training samples; the parts have these only."""
    parts: dict[str, Table]


def read_tables(manifest: Manifest, config: DataConfig, told: Mapping[str, Told] | None = None) -> Tables:
    """Parts train and val, and test where there is one. Raises ValueError: no train, no val; as `read_table`."""
    told = told or {}
    for part, what in (("train", "learned from"), ("val", "chosen by")):
        if part not in manifest.splits.get(config.split, {part: 0}):
            raise ValueError(f"split {config.split} of {manifest.url} has no part {part}, which a baseline is {what}")
    manifest.column(config.split, "train")
    layout = Layout(manifest.schema, frequent_codes(manifest, config, told.get("codes")))
    parts = [part for part in ("train", "val", "test") if part in manifest.splits[config.split]]
    for part in parts:
        size, width = manifest.splits[config.split][part], len(layout.names)
        logger.info("%s: %s records, %s columns, %.1f MB", part, f"{size:,}", f"{width:,}", 4e-6 * size * width)
    tables = {part: read_table(manifest, config, part, layout, told.get(part)) for part in parts}
    column_X = varying(tables["train"].x_BX)
    logger.info("%s columns differ between training samples", f"{len(column_X):,}")
    return Tables(layout, column_X, {part: table.of_columns(column_X) for part, table in tables.items()})


def run_baseline(
    config: RunConfig, manifest: Manifest, tables: Tables, family: Family, tags: Mapping[str, str]
) -> dict[str, Any]:
    """Learn a baseline of one family and leave what a run leaves. `config` names it, its data, storage and tracking.

    Returns: `run_id`, `mlflow`, `name`, `family`, `status`, `metrics` (of validation and test), `chosen`, `notes`,
    `seconds`.

    Raises ValueError: a task without labels. LeaseHeldError: the name is in use.
    """
    return tracked_run(config, tags, lambda tracker, guard: _learned(config, manifest, tables, family, tracker, guard))


def tracked_run(
    config: RunConfig, tags: Mapping[str, str], make: Callable[[Tracker, Guard], dict[str, Any]]
) -> dict[str, Any]:
    """What is made at once, without steps, under a run's name, and tracked: what `make` returns, and what of every run.

    Raises LeaseHeldError: the name is in use.
    """
    started = time.perf_counter()
    with take_run(config) as lease:
        tracker = create_tracker(config.tracking, config.name, config.tracking.run_id, tags, 0, config.run_dir, lease)
        try:
            result = make(tracker, lease)
            tracker.finish("FINISHED")
        finally:
            tracker.finish("FAILED")
        about = {"run_id": tracker.run_id, "mlflow": tracker.delivery, "name": config.name, "run_dir": config.run_dir}
        result = {**about, **result, "status": "finished", "seconds": round(time.perf_counter() - started, 2)}
        lease.confirm()
        write_json(config.run_dir, RESULT, result)
    return result


def _learned(
    config: RunConfig, manifest: Manifest, tables: Tables, family: Family, tracker: Tracker, guard: Guard
) -> dict[str, Any]:
    schema, parts = manifest.schema, tables.parts
    wanted = config.training.tasks or list(schema.task_names)
    baseline = Baseline(family, tables.layout, tables.column_X, {})
    baseline.about = {
        "name": config.name,
        "split": config.data.split,
        "data_digest": manifest.digest,
        "data_url": manifest.url,
    }
    chosen: dict[str, Any] = {}
    notes: list[str] = []
    for task in map(schema.task, wanted):
        logger.info("%s learn %s", family, task.name)
        known = [(parts[part].x_BX, parts[part].targets[task.name].numpy()) for part in ("train", "val")]
        answer = learn(task, known[0], known[1], learner_of(family, config.training.seed))
        baseline.models[task.name] = answer.model
        chosen[task.name], notes = answer.chosen, notes + answer.notes
    _log_origin(config, manifest, tables, family, chosen, tracker)
    guard.confirm()
    write_baseline(config.run_dir, baseline)
    metrics: dict[str, float] = {}
    for part in ("val", "test"):
        if part in parts:
            metrics |= _measured(baseline, parts[part], part, tracker)
    about = {"format": "fleximoe-baseline", "family": family, "data.digest": manifest.digest, "data.url": manifest.url}
    tracker.log_model(config.run_dir, about, {name: v for name, v in metrics.items() if name.startswith("test/")})
    return {"family": family, "metrics": metrics, "chosen": chosen, "notes": notes}


def _measured(baseline: Baseline, table: Table, part: str, tracker: Tracker) -> dict[str, float]:
    predictions = baseline.predictions(table)
    tasks = [model.task for model in baseline.models.values()]
    metrics = part_metrics(part, tasks, predictions) | _counts(part, predictions)
    tracker.log_metrics(metrics, 1)
    if part == "test":
        from trainer.figures.of_test import log_predictions, log_test_figures  # a plotting library

        log_test_figures(tracker, tasks, predictions)
        log_predictions(tracker, tasks, predictions)
    return metrics


def _counts(part: str, predictions: Predictions) -> dict[str, float]:
    found = {f"{part}/records": float(predictions.records)}
    if predictions.moment_B is not None:
        found[f"{part}/moments"] = float(len(predictions))
    if predictions.skipped:
        found[f"{part}/skipped"] = float(sum(predictions.skipped.values()))
    return found


def _log_origin(
    config: RunConfig, manifest: Manifest, tables: Tables, family: Family, chosen: dict[str, Any], tracker: Tracker
) -> None:
    """Data, settings and packages: what another person needs to repeat the run."""
    data = {"name": manifest.schema.name, "digest": manifest.digest, "records": manifest.records}
    training = {"seed": config.training.seed, "storage": config.training.storage, "tasks": config.training.tasks}
    told = {
        "job": JOB,
        "data": config.data.model_dump(mode="json"),
        "training": training,
        "tracking": config.tracking.model_dump(mode="json", exclude={"spool"}),
        "dataset": data,
        "baseline": {"family": family, "columns": len(tables.column_X), "tasks": chosen},
    }
    tracker.log_params(told)
    tracker.log_json(CONFIG, {**told, "columns": [tables.layout.names[number] for number in tables.column_X]})
    tracker.log_dataset(manifest.schema.name, manifest.url, manifest.digest, "training")
    tracker.set_tags({"job_type": JOB, "dataset.name": manifest.schema.name, "dataset.digest": manifest.digest})
    tracker.log_text(REQUIREMENTS, environment_lock())
