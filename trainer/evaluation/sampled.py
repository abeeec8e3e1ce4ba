"""What a model rests on, from a sample of a part, in one process and without an engine.

The sample is stretches of records, spread evenly over the part. Of each record everything is hidden that the
missing-modality curve hides, and then, to see when what matters happens, each eighth of the observation window.

Shape legend: B records, M modalities, T stretches of time, C answers of a task.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data_shards import Batch, TaskSpec
from trainer.evaluation.missing_curve import curve_table, hiding_of, shares_hidden, ways_to_hide
from trainer.evaluation.part import moments_of
from trainer.inference.answers import answer
from trainer.inference.explain import modality_shares
from trainer.inference.predictor import Predictor, Stretch
from trainer.metrics.main_metric import main_metric_of_tasks
from trainer.metrics.predictions import PredictionCollector
from trainer.metrics.scores import part_metrics
from trainer.models.layers.hide_times import hide_times

EIGHTHS = 8  # of the observation window
SEEDS = 2  # draws of what is missing, for each rate


@dataclass(frozen=True)
class Sampled:
    """What was found.

    Attributes:
        samples: that were read, of `of` in the part. skipped: reason -> samples that could not be read.
        curve: as `missing_curve` gives it, of the sample; None where nothing in it is labelled.
        modalities: task -> modality -> mean share of the change of an answer that hiding it makes, and the number of
            samples that have it, over which the mean is.
        times: task -> mean share of each eighth of the observation window; without entries where nothing has times.
    """

    samples: int
    of: int
    skipped: dict[str, int]
    curve: dict[str, Any] | None
    modalities: dict[str, dict[str, tuple[float, int]]]
    times: dict[str, list[float]]


def spread_evenly(samples: int, wanted: int, each: int) -> list[Stretch]:
    """Stretches of `each` samples, together `wanted`, spread over a part of `samples`; all of a smaller one."""
    if samples <= wanted:
        return [Stretch(start, min(start + each, samples)) for start in range(0, samples, each)]
    number = -(-wanted // each)
    gap = (samples - wanted) / max(1, number - 1)
    starts = [round(place * gap) + place * each for place in range(number)]
    return [
        Stretch(start, start + min(each, wanted - place * each)) for place, start in enumerate(starts)
    ]  # fmt: skip


def look_at_sample(predictor: Predictor, part: str, wanted: int) -> Sampled:
    """Hide and predict. Raises ShardError: a damaged record, unless the data section says to skip those."""
    schema, tasks, model = predictor.schema, predictor.tasks, predictor.model
    of = sum(stretch.stop - stretch.start for stretch in predictor.stretches())
    ways = ways_to_hide(schema, SEEDS)
    counts = torch.zeros(2, len(ways), dtype=torch.float64, device=predictor.device)
    hides = [hiding_of(schema, way, counts[:, number]) for number, way in enumerate(ways)]
    collectors = [PredictionCollector(tasks) for _ in ways]
    sums = _Sums(tasks, len(schema.modalities))
    lost: Counter[str] = Counter()
    each = max(1, min(predictor.request.batch_size, -(-wanted // 8)))
    with torch.no_grad():
        for stretch in spread_evenly(of, wanted, each):
            for batch, skipped in predictor.batches(stretch):
                lost.update(skipped)
                whole = model(batch)
                for hide, collector in zip(hides, collectors, strict=True):
                    output = model(hide(batch))
                    collector.add(batch.index_B, moments_of(batch), output.logits, batch.targets)
                sums.add_modalities(batch, modality_shares(model, batch, tasks, whole))
                if any(spec.has_times for spec in schema.modalities):
                    sums.add_times(predictor, batch, whole.logits)
    found = [collector.to_first() for collector in collectors]
    rows = [part_metrics(part, tasks, predictions) for predictions in found if predictions is not None]
    curve = None
    if rows[0]:
        curve = curve_table(part, ways, rows, shares_hidden(counts.cpu()))
        curve["tasks"] = {name: list(schema.modality_names) for name in main_metric_of_tasks(part, rows[0])}
    return Sampled(len(collectors[0]), of, dict(lost), curve, sums.modalities(schema.modality_names), sums.times())


class _Sums:
    """Of shares, over the samples that have any."""

    def __init__(self, tasks: list[TaskSpec], modalities: int) -> None:
        self._tasks = tasks
        self._share_M = {task.name: torch.zeros(modalities, dtype=torch.float64) for task in tasks}
        self._there_M = torch.zeros(modalities, dtype=torch.float64)
        self._share_T = {task.name: torch.zeros(EIGHTHS, dtype=torch.float64) for task in tasks}
        self._moved = dict.fromkeys((task.name for task in tasks), 0)

    def add_modalities(self, batch: Batch, share_BM: dict[str, Tensor]) -> None:
        self._there_M += batch.present_BM.sum(dim=0).cpu()
        for name, own_BM in share_BM.items():
            self._share_M[name] += own_BM.sum(dim=0).double().cpu()

    def add_times(self, predictor: Predictor, batch: Batch, whole: dict[str, Tensor]) -> None:
        """Of each eighth of the window the mean absolute change of the answer without it, over their sum."""
        changes: dict[str, list[Tensor]] = {task.name: [] for task in self._tasks}
        for number in range(EIGHTHS):
            window = torch.tensor([number / EIGHTHS, (number + 1) / EIGHTHS]).expand(len(batch), 1, 2)
            logits = predictor.model(hide_times(batch, predictor.schema, window)).logits
            for task in self._tasks:
                difference_BC = answer(task, logits[task.name]) - answer(task, whole[task.name])
                changes[task.name].append(difference_BC.abs().mean(dim=1))
        for name, columns in changes.items():
            change_BT = torch.stack(columns, dim=1).double().cpu()
            change_BT = change_BT[change_BT.sum(dim=1) > 0]
            self._share_T[name] += (change_BT / change_BT.sum(dim=1, keepdim=True)).sum(dim=0)
            self._moved[name] += len(change_BT)

    def modalities(self, names: tuple[str, ...]) -> dict[str, dict[str, tuple[float, int]]]:
        there = self._there_M.tolist()
        return {
            task: {
                name: (share / count, int(count))
                for name, share, count in zip(names, share_M.tolist(), there, strict=True)
                if count
            }
            for task, share_M in self._share_M.items()
        }

    def times(self) -> dict[str, list[float]]:
        return {name: (self._share_T[name] / moved).tolist() for name, moved in self._moved.items() if moved}
