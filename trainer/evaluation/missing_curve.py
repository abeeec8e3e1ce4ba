"""What absent modalities cost: a metric with each modality removed, and with a growing share of all of them missing.

Which modalities a record loses is a function of (seed, record) only, and what is lost at one rate is also lost at
every higher one; at least one modality of a record always stays. The data are read once for all ways to hide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from data_shards import Batch
from data_shards.loading.mixture import Mixture
from trainer.evaluation.part import part_results, predict_hiding
from trainer.metrics.main_metric import main_metric_of_tasks, primary_metric
from trainer.models.layers.missing import drop_modalities, keep_modalities
from trainer.session import Session
from trainer.worker.collectives import broadcast_json, sum_over_ranks

RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


@dataclass(frozen=True)
class Hiding:
    """One way to look at the data: without one modality, or with a share of them missing."""

    modality: str | None = None
    rate: float = 0.0
    seed: int = 0


def ways_to_hide(modalities: tuple[str, ...], seeds: int) -> list[Hiding]:
    """Everything as it is, without each modality, and each rate with each seed."""
    without = [Hiding(modality=name) for name in modalities]
    return [Hiding(), *without, *(Hiding(rate=rate, seed=seed) for rate in RATES[1:] for seed in range(seeds))]


def missing_curve(session: Session, part: str, seeds: int, metric: str | None = None) -> dict[str, Any]:
    """Metrics of a part under each way to hide. Collective; the same on every rank.

    Args:
        seeds: draws of what is missing at each rate.
        metric: name after the part, e.g. `auroc`, that stands for the run; None = the usual one of the task.

    Returns:
        `part`, `metric`, `tasks` (the metric of each task: modalities that its records can have), `whole` (all
        metrics), `without` (a row per modality), `missing` (a row per rate and seed, with `hidden`, the share of the
        present modalities that was taken away).
    """
    chosen = ways_to_hide(session.schema.modality_names, seeds)
    counts = torch.zeros(2, len(chosen), dtype=torch.float64, device=session.device)  # modalities present, and kept
    hides = [_hide(session, hiding, counts[:, number]) for number, hiding in enumerate(chosen)]
    everything = predict_hiding(session, part, hides)
    counts = sum_over_ranks(counts.cpu())
    # 0 / 0, of a part without any modality, is no share.
    hidden = [None if share != share else share for share in (1 - counts[1] / counts[0]).tolist()]
    result: dict[str, Any] = {}
    if session.context.rank == 0:
        rows = [part_results(session, part, predictions) for predictions in everything if predictions is not None]
        result = _table(part, chosen, rows, hidden, metric)
        result["tasks"] = {name: _modalities(session, name) for name in main_metric_of_tasks(part, rows[0])}
    found: dict[str, Any] = broadcast_json(result)
    return found


def _modalities(session: Session, metric: str) -> list[str]:
    """Modalities that can have a part in a metric: in a mixture those of the task's own data set."""
    members = session.manifest.members if isinstance(session.manifest, Mixture) else []
    schemas = [member.schema for member in members if metric.split("/")[1] in member.schema.task_names]
    return list((schemas or [session.schema])[0].modality_names)


def _hide(session: Session, hiding: Hiding, counts: torch.Tensor) -> Callable[[Batch], Batch]:
    keep_M = torch.ones(len(session.schema.modalities), dtype=torch.bool, device=session.device)
    if hiding.modality is not None:
        keep_M[session.schema.numbers[hiding.modality]] = False

    def hide(batch: Batch) -> Batch:
        kept = batch
        if hiding.modality is not None:
            kept = keep_modalities(batch, keep_M.expand_as(batch.present_BM))
        elif hiding.rate:
            kept = drop_modalities(batch, hiding.rate, hiding.seed)
        counts.add_(torch.stack([batch.present_BM.sum(), kept.present_BM.sum()]))
        return kept

    return hide


def _table(
    part: str, chosen: list[Hiding], rows: list[dict[str, float]], hidden: list[float | None], metric: str | None
) -> dict[str, Any]:
    whole = rows[0]
    without, missing = [], [{"rate": 0.0, "seed": 0, "hidden": 0.0, "metrics": whole}]
    for hiding, row, share in zip(chosen[1:], rows[1:], hidden[1:], strict=True):
        if hiding.modality is not None:
            without.append({"modality": hiding.modality, "hidden": share, "metrics": row})
        else:
            missing.append({"rate": hiding.rate, "seed": hiding.seed, "hidden": share, "metrics": row})
    name = primary_metric(part, whole, metric)
    return {"part": part, "metric": name, "whole": whole, "without": without, "missing": missing}
