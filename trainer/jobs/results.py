"""What a finished run leaves: test metrics, figures, predictions, an adapter. Imports a plotting library."""

from __future__ import annotations

import tempfile
from pathlib import Path

import fsspec
import torch
from torch import Tensor

from data_shards import DatasetSchema, TaskSpec
from trainer.checkpoints.adapter import write_adapter
from trainer.checkpoints.checkpoint import Checkpoint
from trainer.evaluation.part import evaluate_part, observe
from trainer.figures.evaluation import confusion_figure, reliability_figure, roc_figure
from trainer.figures.routing import routing_figure
from trainer.figures.survival import curves_figure, survival_calibration_figure
from trainer.metrics.calibration import statements
from trainer.metrics.prediction_table import write_predictions
from trainer.metrics.predictions import Predictions
from trainer.metrics.survival_scores import followed
from trainer.run_folder import ADAPTER, ROUTING, ROUTING_FIGURE, TEST_PREDICTIONS
from trainer.session import Session
from trainer.tracking.tracker import Tracker


def log_adapter(tracker: Tracker, url: str) -> None:
    """Copies of an adapter's files as artifacts of the run."""
    fs, root = fsspec.url_to_fs(url)
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("safetensors", "json"):
            path = Path(folder) / f"{ADAPTER}.{suffix}"
            path.write_bytes(fs.cat_file(f"{root}/{path.name}"))
            tracker.log_file(f"adapter/{path.name}", path)


def log_routing_figures(tracker: Tracker, schema: DatasetSchema, counts: list[Tensor]) -> None:
    """Expert x modality heat map per layer, and the table behind it."""
    if not counts:
        return
    names = list(schema.modality_names)
    tracker.log_json(ROUTING, {"modalities": names, "layers": [count.tolist() for count in counts]})
    tracker.log_figure(ROUTING_FIGURE, routing_figure(names, counts))


def log_test_figures(tracker: Tracker, tasks: list[TaskSpec], predictions: Predictions) -> None:
    """Figures of the test part: ROC curve of binary tasks, confusion matrix of multi-class ones, reliability of both.

    Of survival the curves beside Kaplan-Meier's, and calibration at a few times.
    """
    for task in tasks:
        if task.kind == "survival":
            _log_survival(tracker, task, predictions)
            continue
        stated = statements(task, predictions.logits[task.name], predictions.targets[task.name])
        if stated is not None and len(stated[0]):
            tracker.log_figure(f"figures/reliability_{task.name}.png", reliability_figure({task.name: stated}))
        target_Bt = predictions.targets[task.name]
        known_B = ~target_Bt.isnan().any(dim=1)
        logits_BC, truth_B = predictions.logits[task.name][known_B], target_Bt[known_B][:, 0].long()
        if task.kind == "binary" and 0 < int(truth_B.sum()) < len(truth_B):
            tracker.log_figure(f"figures/roc_{task.name}.png", roc_figure(task, logits_BC[:, 0].sigmoid(), truth_B))
        if task.kind == "multiclass" and len(truth_B):
            tracker.log_figure(f"figures/confusion_{task.name}.png", confusion_figure(task, logits_BC, truth_B))


def _log_survival(tracker: Tracker, task: TaskSpec, predictions: Predictions) -> None:
    target_B2 = predictions.targets[task.name]
    if bool(target_B2.isnan().any(dim=1).all()):
        return
    own = followed(task, predictions.logits[task.name], target_B2)
    tracker.log_figure(f"figures/survival_{task.name}.png", curves_figure(task, own))
    if len(own.edge_T):
        tracker.log_figure(f"figures/calibration_{task.name}.png", survival_calibration_figure(task, own))


def save_adapter(session: Session, tracker: Tracker, best: Checkpoint) -> dict[str, str]:
    """Beside the checkpoints of a job with a frozen backbone: what was trained, as one small file to hand on."""
    if best.meta.get("backbone") is None:
        return {}
    url = f"{session.config.run_dir}/adapter"
    if session.context.rank == 0:
        session.guard.confirm()
        write_adapter(best, url)
        log_adapter(tracker, url)
    return {"adapter": url}


def look_inside(session: Session, tracker: Tracker) -> None:
    """What this type of job has to show of the test part, beyond metrics. Collective."""
    observer = session.job.observer(session.tasks, session.context.rank)
    if observer is not None and "test" in session.manifest.splits[session.config.data.split]:
        observe(session, "test", observer)
        observer.report(tracker)


def test_best(session: Session, tracker: Tracker, step: int, routing: list[torch.Tensor]) -> dict[str, float]:
    """Metrics of the test part (of no part, if there is none), with figures."""
    metrics: dict[str, float] = {}
    predictions = None
    if "test" in session.manifest.splits[session.config.data.split]:
        metrics, predictions = evaluate_part(session, "test")
        tracker.log_metrics(metrics, step)
    if session.context.rank == 0:
        log_routing_figures(tracker, session.schema, routing)
        if predictions is not None:
            log_test_figures(tracker, session.tasks, predictions)
            _log_predictions(tracker, session, predictions)
    return metrics


def _log_predictions(tracker: Tracker, session: Session, predictions: Predictions) -> None:
    """What was said about each test record: intervals and paired comparisons are made from it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(TEST_PREDICTIONS).name
        write_predictions(path, session.tasks, predictions)
        tracker.log_file(TEST_PREDICTIONS, path)
