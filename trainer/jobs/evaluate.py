"""The job `evaluate`: metrics of a checkpoint, what absent modalities cost it, and whether its probabilities hold.

What is found beside the metrics is added to the run that the checkpoint comes from: files in its folder and in MLflow.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from data_shards import DatasetSchema, open_data
from data_shards.lease.lease import Guard, Unowned
from parallel.moe.initial import check_filled
from trainer.checkpoints.checkpoint import Checkpoint
from trainer.checkpoints.description import schema_difference, statistics_from_json
from trainer.checkpoints.find import open_checkpoint
from trainer.checkpoints.pieces import CheckpointError
from trainer.checkpoints.restore import load_engine
from trainer.config.run_config import RunConfig
from trainer.evaluation.missing_curve import missing_curve
from trainer.evaluation.outlook import labels_of, unlabelled
from trainer.evaluation.part import evaluate_part, part_results, predict
from trainer.metrics.main_metric import by_rate, task_curves
from trainer.metrics.predictions import Predictions
from trainer.metrics.temperature import fit_temperatures, scaled, write_temperatures
from trainer.models.pretrained.lineage import check_frozen
from trainer.run_folder import MISSING_CURVE, MISSING_FIGURE, put_file, stored_run_id
from trainer.run_lease import held_results
from trainer.session import Session, build_session
from trainer.tracking.mlflow_run import add_to_run
from trainer.worker.collectives import broadcast_json
from trainer.worker.context import Context

MLFLOW_GROUPS = {"missing": "missing", "last": "missing_last", "window": "missing_window"}
NO_FIT = "no temperature can be fitted"


def evaluate(config: RunConfig, context: Context) -> dict[str, Any]:
    """Metrics of a checkpoint on one part of its data, or of other data of the same schema.

    What writes into the run's folder does that alone. Raises LeaseHeldError: another one is at it.
    """
    request = config.evaluation
    assert request is not None
    checkpoint = open_checkpoint(request.checkpoint)
    with held_results(config, context, checkpoint.run_dir) if request.writes else nullcontext(Unowned()) as guard:
        return _evaluate(config, context, checkpoint, guard)


def _evaluate(config: RunConfig, context: Context, checkpoint: Checkpoint, guard: Guard) -> dict[str, Any]:
    request = config.evaluation
    assert request is not None
    manifest = open_data(config.data)
    schema = DatasetSchema.from_json(json.dumps(checkpoint.meta["schema"]))
    difference = schema_difference(schema, manifest.schema)
    if difference:
        raise CheckpointError(f"{manifest.url} does not fit checkpoint {checkpoint.path}: {difference}")
    statistics = statistics_from_json(checkpoint.meta["statistics"])
    session = build_session(config, context, manifest, schema, statistics, filled=True)
    session.guard = guard
    check_frozen(checkpoint.path, checkpoint.meta, session.engine.module)
    load_engine(checkpoint, session.engine, moments=False)
    check_filled(session.engine.module)
    try:
        _can_measure(session, request.part, request.temperature)
        metrics, predictions = evaluate_part(session, request.part, request.drop, whole=request.temperature)
        result = {
            "run_id": _run_id(session, checkpoint),
            "checkpoint": checkpoint.url,
            "status": "finished",
            "part": request.part,
            "drop": request.drop,
            "metrics": metrics,
            "samples": int(metrics.get(f"{request.part}/moments", metrics[f"{request.part}/records"])),
        }
        if request.temperature:
            result |= _calibrate(session, checkpoint, predictions)
        if request.missing_curve:
            result["missing_curve"] = _missing_curve(session, checkpoint)
        return result
    finally:
        session.close()


def _can_measure(session: Session, part: str, temperature: bool) -> None:
    """Raise ValueError where there is no label to compare with. Collective."""
    for wanted, why in ((part, "there is nothing to measure"), *([("val", NO_FIT)] if temperature else [])):
        session.manifest.column(session.config.data.split, wanted)
        found = labels_of(session, wanted)
        if found is not None and not found.measurable:
            raise ValueError(f"{unlabelled(session, found)}, so {why}; `predict` gives what the model says")


def _run_id(session: Session, checkpoint: Checkpoint) -> str | None:
    """The MLflow run of a checkpoint. It may have been written before the run had its id; the folder knows."""
    stored: str | None = checkpoint.meta["mlflow_run_id"]
    return stored or stored_run_id(checkpoint.run_dir, session.config.tracking.uri)


def _calibrate(session: Session, checkpoint: Checkpoint, predictions: Predictions | None) -> dict[str, Any]:
    """Temperatures fitted on the validation part, kept with the run, and the metrics that they give."""
    request = session.config.evaluation
    assert request is not None
    validated = predict(session, "val", request.drop)
    metrics: dict[str, float] = {}
    temperatures: dict[str, float] = {}
    if validated is not None and predictions is not None:
        temperatures = fit_temperatures(session.tasks, validated)
        session.guard.confirm()
        write_temperatures(checkpoint, temperatures)
        metrics = part_results(session, request.part, scaled(predictions, temperatures))
        metrics = {f"calibrated/{name}": value for name, value in metrics.items()}
        found = {f"temperature/{name}": value for name, value in temperatures.items()}
        add_to_run(session.config.tracking, _run_id(session, checkpoint), {checkpoint.step: {**metrics, **found}})
    told: dict[str, Any] = broadcast_json({"temperatures": temperatures, "calibrated": metrics})
    return told


def _missing_curve(session: Session, checkpoint: Checkpoint) -> dict[str, Any]:
    """The curve, also as table and figure with the run; the step of `missing.../...` in MLflow is per cent missing."""
    request = session.config.evaluation
    assert request is not None
    curve = missing_curve(session, request.part, request.missing_seeds)
    if session.context.rank == 0:
        from trainer.figures.evaluation import missing_figure

        points: dict[int, dict[str, float]] = {}
        for task in task_curves(curve):
            for what, group in MLFLOW_GROUPS.items():
                name = f"{group}/{task['metric'].removeprefix(f'{request.part}/')}"
                for rate, middle, _, _ in by_rate(task, what):
                    points.setdefault(round(100 * rate), {})[name] = middle
        with tempfile.TemporaryDirectory() as folder:
            files = Path(folder)
            (files / MISSING_FIGURE).parent.mkdir()
            (files / MISSING_CURVE).write_text(json.dumps(curve, indent=1))
            missing_figure({session.config.name: curve}).savefig(files / MISSING_FIGURE)
            session.guard.confirm()
            for name in (MISSING_CURVE, MISSING_FIGURE):
                put_file(checkpoint.run_dir, name, files / name)
            add_to_run(session.config.tracking, _run_id(session, checkpoint), points, files)
    return curve
