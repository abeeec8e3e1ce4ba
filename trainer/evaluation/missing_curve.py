"""What is absent costs: a metric without each modality, with a share of all of them missing, and with time hidden.

Which modalities, or which hours, a record loses is a function of (seed, record) only, and what is lost at one rate is
also lost at every higher one; at least one modality of a record always stays. Hours are shares of each modality's
observation window: its last ones, or a stretch anywhere in it; a modality that loses all of it is there, and empty.
The data are read once for all ways to hide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from data_shards import Batch, DatasetSchema, group_layout
from data_shards.loading.mixture import Mixture
from trainer.evaluation.part import part_results, predict_hiding
from trainer.metrics.main_metric import main_metric_of_tasks, primary_metric
from trainer.models.layers.hide_times import hide_times, last_part, random_window
from trainer.models.layers.missing import drop_modalities, keep_modalities
from trainer.session import Session
from trainer.worker.collectives import broadcast_json, sum_over_ranks

RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
STRETCHES = (0.0, 0.25, 0.5, 0.75)  # of the observation window


@dataclass(frozen=True)
class Hiding:
    """One way to look at the data: without one modality, with a share of them missing, or with time hidden.

    Attributes:
        rate: share of the modalities, or of the observation window.
        what: that `rate` is a share of: modalities, the window's end, or a stretch anywhere in it.
    """

    modality: str | None = None
    rate: float = 0.0
    seed: int = 0
    what: Literal["missing", "last", "window"] = "missing"


def ways_to_hide(schema: DatasetSchema, seeds: int) -> list[Hiding]:
    """Everything as it is, without each modality, each rate with each seed; time, where a modality has times."""
    ways = [Hiding(), *(Hiding(modality=name) for name in schema.modality_names)]
    ways += [Hiding(rate=rate, seed=seed) for rate in RATES[1:] for seed in range(seeds)]
    if any(spec.has_times for spec in schema.modalities):
        ways += [Hiding(rate=share, what="last") for share in STRETCHES[1:]]
        ways += [Hiding(rate=share, seed=seed, what="window") for share in STRETCHES[1:] for seed in range(seeds)]
    return ways


def missing_curve(session: Session, part: str, seeds: int, metric: str | None = None) -> dict[str, Any]:
    """Metrics of a part under each way to hide. Collective; the same on every rank.

    Args:
        seeds: draws of what is missing at each rate.
        metric: name after the part, e.g. `auroc`, that stands for the run; None = the usual one of the task.

    Returns:
        `part`, `metric`, `tasks` (the metric of each task: modalities that its records can have), `whole` (all
        metrics), `without` (a row per modality), `missing` (a row per rate and seed, with `hidden`, the share of the
        present modalities that was taken away), and `last` and `window` (the same, of the observation window's end and
        of a stretch anywhere in it; `hidden` is the share of all events, objects and codes with times; without rows
        where nothing has times).
    """
    chosen = ways_to_hide(session.schema, seeds)
    counts = torch.zeros(2, len(chosen), dtype=torch.float64, device=session.device)  # what there was, and was kept
    hides = [hiding_of(session.schema, hiding, counts[:, number]) for number, hiding in enumerate(chosen)]
    everything = predict_hiding(session, part, hides)
    hidden = shares_hidden(sum_over_ranks(counts.cpu()))
    result: dict[str, Any] = {}
    if session.context.rank == 0:
        rows = [part_results(session, part, predictions) for predictions in everything if predictions is not None]
        result = curve_table(part, chosen, rows, hidden, metric)
        result["tasks"] = {name: _modalities(session, name) for name in main_metric_of_tasks(part, rows[0])}
    found: dict[str, Any] = broadcast_json(result)
    return found


def _modalities(session: Session, metric: str) -> list[str]:
    """Modalities that can have a part in a metric: in a mixture those of the task's own data set."""
    members = session.manifest.members if isinstance(session.manifest, Mixture) else []
    schemas = [member.schema for member in members if metric.split("/")[1] in member.schema.task_names]
    return list((schemas or [session.schema])[0].modality_names)


def shares_hidden(counts: torch.Tensor) -> list[float | None]:
    """Of each way to hide, from what there was and what was kept of it; 0 / 0, of no modality at all, is no share."""
    return [None if share != share else share for share in (1 - counts[1] / counts[0]).tolist()]


def hiding_of(schema: DatasetSchema, hiding: Hiding, counts: torch.Tensor) -> Callable[[Batch], Batch]:
    """Hides that of a batch, and adds to `counts` what there was and what was kept."""
    keep_M = torch.ones(len(schema.modalities), dtype=torch.bool, device=counts.device)
    if hiding.modality is not None:
        keep_M[schema.numbers[hiding.modality]] = False

    def hide(batch: Batch) -> Batch:
        kept = batch
        if hiding.modality is not None:
            kept = keep_modalities(batch, keep_M.expand_as(batch.present_BM))
        elif hiding.rate:
            kept = drop_modalities(batch, hiding.rate, hiding.seed)
        counts.add_(torch.stack([batch.present_BM.sum(), kept.present_BM.sum()]))
        return kept

    def hide_time(batch: Batch) -> Batch:
        last = hiding.what == "last"
        window_BW2 = (
            last_part(len(batch), hiding.rate) if last else random_window(batch.index_B, hiding.rate, hiding.seed)
        )
        kept = hide_times(batch, schema, window_BW2)
        counts.add_(torch.tensor([float(timed_rows(one, schema)) for one in (batch, kept)]).to(counts))
        return kept

    return hide if hiding.what == "missing" else hide_time


def timed_rows(batch: Batch, schema: DatasetSchema) -> int:
    """Events, objects and codes with times."""
    timed = [name for name, numbers in group_layout(schema).items() if schema.modalities[numbers[0]].has_times]
    groups: list[Any] = [batch.groups[name] for name in timed if name in batch.groups]
    return sum(len(group.times_O if hasattr(group, "times_O") else group.times_P) for group in groups)


def curve_table(
    part: str, chosen: list[Hiding], rows: list[dict[str, float]], hidden: list[float | None], metric: str | None = None
) -> dict[str, Any]:
    """What `missing_curve` returns but `tasks`; `rows` are the metrics of each way to hide, the first hides nothing."""
    whole = rows[0]
    without, nothing = [], {"rate": 0.0, "seed": 0, "hidden": 0.0, "metrics": whole}
    by_what: dict[str, list[dict[str, Any]]] = {"missing": [nothing], "last": [], "window": []}
    for hiding, row, share in zip(chosen[1:], rows[1:], hidden[1:], strict=True):
        if hiding.modality is not None:
            without.append({"modality": hiding.modality, "hidden": share, "metrics": row})
        else:
            found = by_what[hiding.what] = by_what[hiding.what] or [nothing]
            found.append({"rate": hiding.rate, "seed": hiding.seed, "hidden": share, "metrics": row})
    name = primary_metric(part, whole, metric)
    return {"part": part, "metric": name, "whole": whole, "without": without, **by_what}
