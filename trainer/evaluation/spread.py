"""A large part: each rank keeps a stretch of its predictions, metrics are merged, and each rank writes its own file."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from data_shards import TaskSpec
from trainer.metrics.by_record import mean_of_each, record_rows
from trainer.metrics.main_metric import BY_RECORD
from trainer.metrics.prediction_table import write_predictions
from trainer.metrics.predictions import Predictions
from trainer.metrics.spread.exact import Sums
from trainer.metrics.spread.scores import spread_part_metrics
from trainer.run_folder import STRETCHES, put_file, remove_below
from trainer.session import Session
from trainer.worker.collectives import meet, sum_over_ranks

logger = logging.getLogger("fleximoe")


def write_stretches(session: Session, part: str, own: Predictions) -> None:
    """Predictions of a part into the run's folder, a Parquet file a rank, in the order of the data. Collective."""
    folder, context = f"{STRETCHES}/{part}", session.context
    if context.rank == 0:
        session.guard.confirm()
        remove_below(session.config.run_dir, folder)  # of an earlier end, on other ranks
    meet()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"part-{context.rank:05d}.parquet"
        write_predictions(path, session.tasks, own)
        session.guard.confirm()
        put_file(session.config.run_dir, f"{folder}/{path.name}", path)
    samples = int(sum_over_ranks(torch.tensor(len(own))))
    if context.rank == 0:
        logger.info(
            "predictions of %d samples of part %s are in %s/%s, a file of each worker; no figure is drawn of so many "
            "(training.gathered_samples=%d)",
            *(samples, part, session.config.run_dir, folder, session.config.training.gathered_samples),
        )


def spread_results(session: Session, part: str, own: Predictions) -> dict[str, float]:
    """As `part_results` of all ranks' predictions, of which this rank has `own`, whole records. Collective."""
    metrics = spread_part_metrics(part, session.tasks, own)
    sums = Sums()
    for name, value_B in own.measures.items():
        known_B = ~value_B.isnan()
        sums.add(f"count {name}", int(known_B.sum()))
        sums.add(f"value {name}", value_B[known_B])
    for task in session.tasks:
        loss_B, index_B = _loss_of_each(session, task, own)
        sums.add(f"labelled {task.name}", len(loss_B))
        sums.add(f"loss {task.name}", loss_B)
        row_B = record_rows(index_B)
        mean_G = mean_of_each(loss_B.numpy(), row_B, int(row_B.max(initial=-1)) + 1)
        sums.add(f"records {task.name}", len(mean_G))
        sums.add(f"by record {task.name}", mean_G)
    sums.add("records", own.records)
    sums.add("samples", len(own))
    total = sums.everywhere()
    metrics |= {f"{part}/{n}": total[f"value {n}"] / total[f"count {n}"] for n in own.measures if total[f"count {n}"]}
    of_model = metrics.get(f"{part}/loss", 0.0)
    weights = {task.name: session.config.training.task_weight(task.name) for task in session.tasks}
    weights = {name: weight for name, weight in weights.items() if weight and total[f"labelled {name}"]}
    if weights:
        each = [weight * total[f"loss {name}"] / total[f"labelled {name}"] for name, weight in weights.items()]
        metrics[f"{part}/loss"] = sum(each) + of_model
    metrics[f"{part}/records"] = total["records"]
    if own.moment_B is not None:
        metrics[f"{part}/moments"] = total["samples"]
        each = [weight * total[f"by record {name}"] / total[f"records {name}"] for name, weight in weights.items()]
        metrics |= {f"{part}/loss{BY_RECORD}": sum(each) + of_model} if weights else {}
    if own.skipped:
        metrics[f"{part}/skipped"] = float(sum(own.skipped.values()))
    return metrics


def _loss_of_each(session: Session, task: TaskSpec, own: Predictions) -> tuple[Tensor, Tensor]:
    """float64 loss of each labelled sample, and the number of its record."""
    loss, target_Bt = session.losses[task.name], own.targets[task.name].to(session.device)
    known_B = loss.labelled(target_Bt)
    loss_B = loss.of_each(own.logits[task.name].to(session.device), target_Bt)[known_B]
    return loss_B.double().cpu(), own.index_B[known_B.cpu()]
