"""An ensemble as a run: weights chosen on validation, measured on test, kept and tracked as any other run."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch

from data_shards import Manifest, TaskSpec
from data_shards.errors import ShardError, skipped_words
from data_shards.lease.lease import Guard
from trainer.baseline.run import tracked_run
from trainer.config.run_config import RunConfig
from trainer.ensemble.answers import AnyRequest, open_answers
from trainer.ensemble.choose import Choice, choose_weight
from trainer.ensemble.combine import combined
from trainer.ensemble.export import write_registered_ensemble
from trainer.ensemble.stored import Ensemble, Member, write_ensemble
from trainer.metrics.prediction_table import predictions_of
from trainer.metrics.predictions import Predictions
from trainer.metrics.scores import part_metrics
from trainer.run_folder import CONFIG, REGISTERED, REQUIREMENTS
from trainer.tracking.tracker import Tracker
from trainer.worker.provenance import environment_lock

logger = logging.getLogger("fleximoe")

JOB = "ensemble"
Requests = Callable[[Member, str], AnyRequest]
"""(member, part) -> what is asked of it."""


def part_predictions(request: AnyRequest, device: torch.device | str) -> tuple[list[TaskSpec], Predictions]:
    """What is said of a whole part, in the order of the data set. Raises ShardError: none of it could be read."""
    answers = open_answers(request, device)
    tables: list[pa.Table] = []
    skipped: Counter[str] = Counter()
    for stretch in answers.stretches():
        table, lost = answers(stretch)
        tables.append(table)
        skipped.update(lost)
    if not any(map(len, tables)):
        raise ShardError("", f"no record could be read: {skipped_words(skipped)}", reason="limit")
    tasks, said = predictions_of(pa.concat_tables(tables))
    said.skipped = dict(skipped)
    return tasks, said


def run_ensemble(
    config: RunConfig,
    manifest: Manifest,
    runs: Sequence[Member],
    blend: Member | None,
    requests: Requests,
    tags: Mapping[str, str],
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Choose weights, measure, and leave what a run leaves. `config` names it, its data, storage and tracking.

    Args:
        runs: that count equally. blend: a second opinion, whose weight validation chooses for each task.

    Returns: `run_id`, `mlflow`, `name`, `run_dir`, `status`, `members`, `weights`, `chosen`, `metrics` (of validation
    and test), `seconds`.

    Raises ValueError: members that answer no task in common, or did not read the same. LeaseHeldError: the name is in
    use.
    """
    return tracked_run(
        config,
        tags,
        lambda tracker, guard: _made(config, manifest, runs, blend, requests, tracker, guard, device),
    )


def _made(
    config: RunConfig,
    manifest: Manifest,
    runs: Sequence[Member],
    blend: Member | None,
    requests: Requests,
    tracker: Tracker,
    guard: Guard,
    device: torch.device | str,
) -> dict[str, Any]:
    members = (*runs, *([] if blend is None else [blend]))
    tasks: list[TaskSpec] = []
    weights: dict[str, tuple[float, ...]] = {}
    choices: dict[str, Choice] = {}
    metrics: dict[str, float] = {}
    for part in ("val", "test"):
        if part not in manifest.splits[config.data.split]:
            continue
        said: list[Predictions] = []
        for number, member in enumerate(members, start=1):
            logger.info("%s: member %d of %d, %s", part, number, len(members), member.name)
            own, found = part_predictions(requests(member, part), device)
            tasks = own if not said and not tasks else _shared(tasks, own, member)
            said.append(found)
        if not weights:
            weights, choices = member_weights(tasks, said[: len(runs)], None if blend is None else said[-1])
            _log_origin(config, manifest, members, weights, choices, tracker)
        metrics |= _measured(tasks, combined(tasks, said, weights), part, tracker)
    about = {
        "name": config.name,
        "split": config.data.split,
        "data_digest": manifest.digest,
        "data_url": manifest.url,
        "chosen": {
            name: {"metric": own.metric, "weight": own.weight, "best": own.best} for name, own in choices.items()
        },
    }
    guard.confirm()
    write_ensemble(config.run_dir, Ensemble(members, weights, tuple(tasks), about))
    told = {"format": "fleximoe-ensemble", "members": str(len(members)), "data.digest": manifest.digest}
    measured = {name: value for name, value in metrics.items() if name.startswith("test/")}
    tracker.log_model(config.run_dir, told, measured, _registered(config))
    return {
        "members": [member.name for member in members],
        "weights": {name: list(own) for name, own in weights.items()},
        "chosen": {
            name: {"metric": own.metric, "best": own.best, "scores": _pairs(own.scores)}
            for name, own in choices.items()
        },
        "metrics": metrics,
    }


def _registered(config: RunConfig) -> str | None:
    """The export that a registered version holds; None where none is registered."""
    if config.tracking.register_as is None or not config.tracking.mlflow:
        return None
    return write_registered_ensemble(config.run_dir, f"{config.run_dir}/{REGISTERED}")


def _shared(tasks: list[TaskSpec], own: list[TaskSpec], member: Member) -> list[TaskSpec]:
    """Those of `tasks` that another member answers in the same way. Raises ValueError: none."""
    shared = [task for task in tasks if task in own]
    if not shared:
        names = ", ".join(task.name for task in own)
        raise ValueError(f"{member.name} answers {names}, and the other members {', '.join(t.name for t in tasks)}")
    return shared


def member_weights(
    tasks: Sequence[TaskSpec], said: Sequence[Predictions], blend: Predictions | None
) -> tuple[dict[str, tuple[float, ...]], dict[str, Choice]]:
    """Task -> weight of each run and, last, of the blend; and how that was chosen. `said`, `blend`: of validation."""
    if blend is None:
        return {task.name: tuple([1 / len(said)] * len(said)) for task in tasks}, {}
    choices = {task.name: choose_weight(task, said, blend) for task in tasks}
    weights = {
        name: (*[(1 - own.weight) / len(said)] * len(said), own.weight) for name, own in choices.items()
    }  # fmt: skip
    return weights, choices


def measures(tasks: list[TaskSpec], said: Predictions, part: str) -> dict[str, float]:
    """Metrics of a part, and what was read of it, keyed `part/...`."""
    metrics = part_metrics(part, tasks, said) | {f"{part}/records": float(said.records)}
    if said.moment_B is not None:
        metrics[f"{part}/moments"] = float(len(said))
    if said.skipped:
        metrics[f"{part}/skipped"] = float(sum(said.skipped.values()))
    return metrics


def _measured(tasks: list[TaskSpec], said: Predictions, part: str, tracker: Tracker) -> dict[str, float]:
    metrics = measures(tasks, said, part)
    tracker.log_metrics(metrics, 1)
    if part == "test":
        from trainer.figures.of_test import log_predictions, log_test_figures  # a plotting library

        log_test_figures(tracker, tasks, said)
        log_predictions(tracker, tasks, said)
    return metrics


def _pairs(scores: Mapping[float, float]) -> list[list[float | None]]:
    return [[weight, float(score) if math.isfinite(score) else None] for weight, score in scores.items()]


def _log_origin(
    config: RunConfig,
    manifest: Manifest,
    members: Sequence[Member],
    weights: Mapping[str, tuple[float, ...]],
    choices: Mapping[str, Choice],
    tracker: Tracker,
) -> None:
    """Data, members and weights: what another person needs to repeat the run."""
    chosen = {name: own.weight for name, own in choices.items()}
    told = {
        "job": JOB,
        "data": config.data.model_dump(mode="json"),
        "training": {"storage": config.training.storage},
        "tracking": config.tracking.model_dump(mode="json", exclude={"spool"}),
        "dataset": {"name": manifest.schema.name, "digest": manifest.digest, "records": manifest.records},
        "ensemble": {"members": [member.name for member in members], "blend_weight": chosen},
    }
    tracker.log_params(told)
    urls = [member.url for member in members]
    tracker.log_json(CONFIG, json.loads(json.dumps({**told, "members": urls, "weights": weights})))
    tracker.log_dataset(manifest.schema.name, manifest.url, manifest.digest, "evaluation")
    tracker.set_tags({"job_type": JOB, "dataset.name": manifest.schema.name, "dataset.digest": manifest.digest})
    tracker.log_text(REQUIREMENTS, environment_lock())
