"""Evaluation of a part of the data, spread over the ranks and exact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch

from data_shards import Batch
from data_shards.errors import REASONS, ShardError, skipped_words
from trainer.config.errors import RecipeError
from trainer.evaluation.spread import spread_results
from trainer.metrics.by_record import mean_of_each, record_rows
from trainer.metrics.main_metric import BY_RECORD
from trainer.metrics.predictions import PredictionCollector, Predictions
from trainer.metrics.scores import part_metrics
from trainer.models.job_type import PartObserver
from trainer.models.layers.missing import keep_modalities
from trainer.session import Session
from trainer.worker.collectives import broadcast_json, sum_over_ranks


def predict(session: Session, part: str, drop: list[str] | None = None) -> Predictions | None:
    """Predictions for every record of a part, on rank 0; None elsewhere. Collective.

    Args:
        drop: modalities to hide, as if they had never been recorded.
    Raises:
        RecipeError: an unknown modality. ValueError: an unknown part.
    """
    return predict_hiding(session, part, [hiding(session, drop)])[0]


def hiding(session: Session, drop: list[str] | None) -> Callable[[Batch], Batch]:
    """A batch without some modalities, as if they had never been recorded. Raises RecipeError: an unknown one."""
    if not drop:
        return lambda batch: batch
    keep_M = torch.ones(len(session.schema.modalities), dtype=torch.bool, device=session.device)
    for name in drop:
        if name not in session.schema.numbers:
            raise RecipeError(
                f"there is no modality {name!r}; the model knows {', '.join(session.schema.modality_names)}"
            )
        keep_M[session.schema.numbers[name]] = False
    return lambda batch: keep_modalities(batch, keep_M.expand_as(batch.present_BM))


def predict_hiding(session: Session, part: str, hides: Sequence[Callable[[Batch], Batch]]) -> list[Predictions | None]:
    """Predictions for every record of a part, once for each way to hide something, on rank 0; None elsewhere.

    Data are read once. Collective.

    Raises:
        ShardError: the part has records, and all of them had to be skipped; on every rank.
    """
    collectors, skipped = _collect(session, part, hides)
    return [collector.to_first(skipped) for collector in collectors]


def _collect(
    session: Session, part: str, hides: Sequence[Callable[[Batch], Batch]]
) -> tuple[list[PredictionCollector], dict[str, int]]:
    """What this rank was given of a part, once for each way to hide something; and what all ranks had to skip."""
    names = getattr(session.engine.module, "measures", ())
    collectors = [PredictionCollector(session.tasks, names) for _ in hides]
    session.engine.eval()
    lost = Counter[str]()
    with torch.no_grad():
        for step in session.steps_of(part):
            lost.update(step.skipped)
            for batch in step.micro_batches:
                batch = batch.to(session.device)
                for hide, collector in zip(hides, collectors, strict=True):
                    output = session.engine(hide(batch))
                    collector.add(batch.index_B, moments_of(batch), output.logits, batch.targets, output.measures)
    session.engine.train()
    records, skipped = _over_ranks(len(collectors[0]), lost)
    if session.loader(part, shuffle=False).samples and not records:
        raise ShardError("", f"no record of part {part} could be read: {skipped_words(skipped)}", reason="limit")
    return collectors, skipped


def moments_of(batch: Batch) -> torch.Tensor:
    """(B,) times up to which records are seen; NaN for whole records."""
    return torch.full((len(batch),), torch.nan) if batch.moment_B is None else batch.moment_B


def _over_ranks(records: int, lost: Counter[str]) -> tuple[int, dict[str, int]]:
    """Of all ranks together: records that were read, and reason -> those that had to be skipped. Collective."""
    read, *counts = sum_over_ranks(torch.tensor([records, *(lost[name] for name in REASONS)])).tolist()
    return read, {name: count for name, count in zip(REASONS, counts, strict=True) if count}


def observe(session: Session, part: str, observer: PartObserver) -> None:
    """Show an observer what the model says of a part's records, each rank its share. Collective."""
    session.engine.eval()
    with torch.no_grad():
        for step in session.steps_of(part):
            for batch in step.micro_batches:
                batch = batch.to(session.device)
                observer.add(batch, session.engine(batch))
    session.engine.train()


def is_spread(session: Session, part: str) -> bool:
    """Whether a part is so large that predictions stay on the ranks, and only what metrics need is merged."""
    return session.loader(part, shuffle=False).samples > session.config.training.gathered_samples


def evaluate_part(
    session: Session, part: str, drop: list[str] | None = None, whole: bool = False
) -> tuple[dict[str, float], Predictions | None]:
    """Metrics of a part, keyed `part/...`, the same on every rank, and the predictions behind them: on rank 0, or of a
    large part (`is_spread`) on each rank a stretch of them.

    Args:
        whole: bring them to rank 0, however many they are.

    Collective.
    """
    if not whole and is_spread(session, part):
        (collector,), skipped = _collect(session, part, [hiding(session, drop)])
        own = collector.to_owners(skipped)
        return spread_results(session, part, own), own
    predictions = predict(session, part, drop)
    metrics: dict[str, float] = {}
    # The others wait in the broadcast meanwhile, as long as it takes.
    if predictions is not None:
        metrics = part_results(session, part, predictions)
    return broadcast_json(metrics), predictions


def part_results(session: Session, part: str, predictions: Predictions) -> dict[str, float]:
    """Metrics, loss, and what was read and skipped, of a part's predictions, keyed `part/...`.

    Where records are seen at moments, `records` counts different ones, `moments` and `skipped` count moments, and
    `loss_by_record` is the loss with each record counted once.

    What nothing is labelled for has no figure: without a label of a task that has a weight there is no loss.
    """
    metrics = part_metrics(part, session.tasks, predictions)
    measured = {name: value_B[~value_B.isnan()] for name, value_B in predictions.measures.items()}
    metrics |= {f"{part}/{name}": float(value_X.double().mean()) for name, value_X in measured.items() if len(value_X)}
    own = metrics.get(f"{part}/loss", 0.0)  # what the model measures itself
    losses, losses_by_record = _losses(session, predictions)
    if losses:
        metrics[f"{part}/loss"] = sum(losses) + own
    metrics[f"{part}/records"] = float(predictions.records)
    if predictions.moment_B is not None:
        metrics[f"{part}/moments"] = float(len(predictions))
        metrics |= {f"{part}/loss{BY_RECORD}": sum(losses_by_record) + own} if losses else {}
    if predictions.skipped:
        metrics[f"{part}/skipped"] = float(sum(predictions.skipped.values()))
    return metrics


def _losses(session: Session, predictions: Predictions) -> tuple[list[float], list[float]]:
    """Mean loss of each task that has a label and a weight, weighted as in training: over samples, and over records."""
    found, by_record = [], []
    for task in session.tasks:
        loss, target_Bt = session.losses[task.name], predictions.targets[task.name].to(session.device)
        count, weight = loss.labelled(target_Bt).sum(), session.config.training.task_weight(task.name)
        if not int(count) or not weight:
            continue
        loss_B = loss.of_each(predictions.logits[task.name].to(session.device), target_Bt)
        # In double precision, as it is merged over ranks (`spread_results`).
        found.append(weight * float(loss_B.double().sum() / count))
        known_B = loss.labelled(target_Bt)
        row_B = record_rows(predictions.index_B[known_B.cpu()])
        mean_G = mean_of_each(loss_B[known_B].double().cpu().numpy(), row_B, int(row_B.max()) + 1)
        by_record.append(weight * float(mean_G.mean()))
    return found, by_record
