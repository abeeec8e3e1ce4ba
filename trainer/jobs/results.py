"""What a finished run leaves: test metrics, figures, predictions, an adapter. Imports a plotting library."""

from __future__ import annotations

import tempfile
from pathlib import Path

import fsspec
import torch
from torch import Tensor

from data_shards import DatasetSchema
from trainer.checkpoints.adapter import write_adapter
from trainer.checkpoints.checkpoint import Checkpoint
from trainer.evaluation.part import evaluate_part, is_spread, observe
from trainer.evaluation.spread import write_stretches
from trainer.figures.of_test import log_predictions, log_test_figures
from trainer.figures.routing import routing_figure
from trainer.run_folder import ADAPTER, ROUTING, ROUTING_FIGURE
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


def test_best(
    session: Session, tracker: Tracker, step: int, best: Checkpoint, routing: list[torch.Tensor]
) -> dict[str, float]:
    """Metrics of the test part (of no part, if there is none), with figures."""
    metrics: dict[str, float] = {}
    predictions = None
    if "test" in session.manifest.splits[session.config.data.split]:
        metrics, predictions = evaluate_part(session, "test")
        tracker.log_metrics(metrics, step)
        if predictions is not None and is_spread(session, "test"):
            write_stretches(session, "test", predictions)
            predictions = None
    if session.context.rank == 0:
        log_routing_figures(tracker, session.schema, routing)
        if predictions is not None:
            log_test_figures(tracker, session.tasks, predictions)
            log_predictions(tracker, session.tasks, predictions, best.step)
    return metrics
