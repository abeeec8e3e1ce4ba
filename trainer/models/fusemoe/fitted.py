"""What a preset chooses for a recipe that leaves it open, from facts of the training part alone.

Rules, not a search: equal recipes and equal data give equal runs. docs/defaults.md has them as tables; how they compare
with linear models and trees on small real data is measured by `benchmarks.small_sets`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_shards import DatasetSchema, TaskSpec
from data_shards.records.statistics import SplitStatistics
from trainer.config.run_config import RunConfig, with_values

FEW, SOME = 1_000, 5_000  # training samples: below the first a small model, below the second more dropout
LONG = 64  # samples of a signal, or of a channel of a series, on average; of fewer fine shares of time are mostly noise
RANKED = 20  # validation samples of the rarest class, by its share of the training part: with fewer a rank is luck
STEPS = 2_000  # of a run of up to 10,000 samples; with more it grows with their root
EPOCHS = (3, 150)
EVALUATIONS = 30
FACTORS = {"fast": 1 / 3, "good": 1.0, "best": 2.0}
METRICS = {"binary": "auroc", "multiclass": "accuracy", "survival": "concordance"}


@dataclass(frozen=True)
class Facts:
    """Of a training part.

    Attributes:
        samples: it holds. labelled: of them the fewest that a task has labels of.
        rarest: samples of the rarest class of all tasks with classes; None without such a task.
        modalities: that some sample has. absent: the mean share of samples that lack one of these.
        quantiles: whether all modalities with numbers have some.
        validation: samples of that part. codes: entries of all vocabularies.
        signal: samples of a waveform, mean of all; None without waveforms.
        dense: values of a channel of a series, mean over channels and records; 0 without series.
    """

    samples: int
    labelled: int
    rarest: int | None
    modalities: int
    absent: float
    quantiles: bool
    validation: int
    codes: int = 0
    signal: float | None = None
    dense: float = 0.0

    @staticmethod
    def of(
        schema: DatasetSchema, tasks: Sequence[TaskSpec], statistics: SplitStatistics, parts: Mapping[str, int]
    ) -> Facts:
        """From what the manifest holds; no record is read. `parts`: samples of each."""
        present = [own.present for own in statistics.modalities.values() if own.present]
        classes = [
            min(count for count in statistics.tasks[task.name].counts if count)
            for task in tasks
            if task.kind in ("binary", "multiclass") and any(statistics.tasks[task.name].counts)
        ]
        numbers = [spec.name for spec in schema.modalities if spec.kind in ("series", "vector", "codes")]
        absent = 1 - sum(present) / (len(present) * statistics.records) if present else 0.0
        return Facts(
            statistics.records,
            min((statistics.tasks[task.name].labelled for task in tasks), default=0),
            min(classes, default=None),
            len(present),
            absent,
            all(statistics.modalities[name].quantiles for name in numbers if statistics.modalities[name].present),
            parts.get("val", 0),
            sum(spec.codes or 0 for spec in schema.modalities if spec.kind == "codes"),
            _signal(schema, statistics),
            _dense(schema, statistics),
        )


def fitted(config: RunConfig, facts: Facts, tasks: Sequence[TaskSpec]) -> RunConfig:
    """The recipe with a value for each key that it leaves open."""
    values = chosen(config, facts, tasks)
    return with_values(config, {key: values[key] for key in config.unnamed})


def chosen(config: RunConfig, facts: Facts, tasks: Sequence[TaskSpec]) -> dict[str, Any]:
    """A value for every key of `preset.FITTED`; those of length follow what the recipe names of the others."""
    preset, open_keys = config.preset, set(config.unnamed)
    batch_size = _batch_size(config, facts) if "training.batch_size" in open_keys else config.training.batch_size
    a_pass = max(1, math.ceil(facts.samples / batch_size))  # an empty part is refused later, in a sentence
    wanted = STEPS * FACTORS[preset] * math.sqrt(max(1.0, facts.samples / 10_000))
    epochs = min(max(round(wanted / a_pass), EPOCHS[0]), EPOCHS[1])
    if "training.epochs" not in open_keys:
        epochs = config.training.epochs
    every = "epoch" if epochs <= EVALUATIONS else math.ceil(epochs * a_pass / EVALUATIONS)
    small = facts.labelled < FEW
    width = {"fast": 32, "good": 32 if small else 64, "best": 64 if small else 128}[preset]
    return {
        "model.dim": max(width, config.model.heads, config.model.text.heads),
        "model.layers": 1 if small or preset == "fast" else 2,
        "model.dropout": 0.3 if facts.labelled < SOME else 0.2,
        "model.modality_dropout": _modality_dropout(facts),
        "model.scale": "quantile" if facts.quantiles else "standard",
        "model.series.statistics": _of_series(facts),
        "model.waveform.statistics": "kernels" if facts.signal is not None and facts.signal < LONG else "fine_kernels",
        "model.head.start": "base",
        "model.head.members": 1 if facts.signal is None else 4,  # no better on tables and series
        "model.head.skip": "linear",
        "optim.lr": 2e-3 if small else 1e-3,
        "optim.ema": 0.0 if facts.codes > config.model.codes.spread_above else _ema(a_pass),
        "training.batch_size": batch_size,
        "training.epochs": epochs,
        "training.eval_every": every,
        "training.early_stopping.metric": _metric(facts, tasks),
        "training.early_stopping.patience": max(4, min(epochs, EVALUATIONS) // 3) if facts.validation else None,
    }


def _signal(schema: DatasetSchema, statistics: SplitStatistics) -> float | None:
    """Samples of a signal; a record may have several of a modality with times."""
    tables = [statistics.modalities[spec.name] for spec in schema.modalities if spec.kind == "waveform"]
    if not tables:
        return None
    signals = sum(table.present * (1.0 if table.objects is None else table.objects.mean) for table in tables)
    return sum(table.count[0] for table in tables) / max(1.0, signals)


def _dense(schema: DatasetSchema, statistics: SplitStatistics) -> float:
    tables = [statistics.modalities[spec.name] for spec in schema.modalities if spec.kind == "series"]
    return sum(sum(table.count) for table in tables) / max(1, sum(table.present * len(table.count) for table in tables))


def _of_series(facts: Facts) -> str:
    if not facts.quantiles:
        return "none"
    return "token" if facts.dense < LONG else "fine_kernels"


def _batch_size(config: RunConfig, facts: Facts) -> int:
    """About 30 steps an epoch of small data, at most 64 samples; more of large data, as there are steps enough."""
    at_least = config.parallel.workers * config.training.accumulation
    most = 64 if facts.samples < 30_000 else 128 if facts.samples < 300_000 else 256
    size = 2 ** round(math.log2(max(facts.samples, 1) / 30)) if facts.samples > 60 else 2
    return max(min(max(size, 8), most), at_least)


def _ema(a_pass: int) -> float:
    """An average that reaches a third of an epoch back."""
    return round(min(max(1 - 3 / a_pass, 0.9), 0.999), 3)


def _modality_dropout(facts: Facts) -> float:
    """Half as much again as is absent anyway, so that what may be missing was seen; 0 with nothing to hide."""
    if facts.modalities < 2:
        return 0.0
    return round(min(max(1.5 * facts.absent, 0.1), 0.3), 2)


def _metric(facts: Facts, tasks: Sequence[TaskSpec]) -> str:
    """The one that stands for the task where there is enough to rank by it.

    Else a proper score, which is less a matter of luck: of few records in classes the Brier score, as a model may still
    learn to tell them apart while its loss grows by a few that it is far too sure of; the loss of others.
    """
    if len(tasks) > 1:
        return "val/loss"
    kind = tasks[0].kind
    if facts.labelled < FEW:
        return "val/brier" if kind in ("binary", "multiclass") else "val/loss"
    seen = facts.validation * (1.0 if facts.rarest is None else facts.rarest / facts.labelled)
    return f"val/{METRICS.get(kind, 'loss')}" if seen >= RANKED else "val/loss"
