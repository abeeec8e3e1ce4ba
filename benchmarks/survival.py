"""Survival on real tables: FuseMoE against Cox regression on the same records, split and inputs.

    python -m benchmarks.survival choose --work DIR [--tables gbsg2 whas500 flchain]   # never a test part
    python -m benchmarks.survival score  --work DIR [--tables ...] [--seeds 0 1]       # the test parts

The plan, written before any test part was scored:

Tables     GBSG2 (686 women, 299 relapses or deaths), WHAS500 (500, 215 deaths) and flchain (7,874, 2,169 deaths), as
           scikit-survival ships them. Of flchain `chapter`, the cause of death, is left out: only the dead have one.
Inputs     the columns as they are. Numbers are one modality, a vector, with a feature that says where one is missing;
           categories are another, a vector of zeros and ones. Cox gets the same columns, standardised by the training
           part, 0 where missing, without the first category of each.
Split      five folds by hash of the record: fold f is the test part, f + 1 the validation part, the others train, so
           that each record is tested once. Edges of 15 intervals come from each fold's training part.
FuseMoE    the defaults of a recipe but for its length: 30 epochs (flchain 6), best epoch by validation concordance;
           optim.lr 0.001 (the default) or 0.003, by mean validation concordance over the folds, seed 0. Scored with
           seeds 0 and 1; figures are means over them, risks are not averaged.
Cox        CoxPHSurvivalAnalysis with a ridge (alpha) of 0.0001, 0.1, 1, 10 or 100, by validation concordance of each
           fold; trained on the training part alone, as FuseMoE is.
Compared   Harrell's concordance of each fold's test part, mean over folds; 95 % of 1,000 draws of the test records of
           every fold, paired for the difference. Beside it the integrated Brier score over the usable edges of a fold.
           Intervals say what other test records would change, not other training records.

Runs are ordinary jobs in one process; one that is in DIR already is not repeated. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sksurv import datasets
from sksurv.linear_model import CoxPHSurvivalAnalysis

from benchmarks.common import last_line, table
from data_shards import DatasetSchema, ModalitySpec, Record, TaskSpec, pack
from data_shards.records.survival import edges_from
from data_shards.sources.base import Source, SourceOptions, hashed_part
from trainer.config.run_config import RunConfig
from trainer.metrics.bootstrap.intervals import draw_weights, interval, mean_over_seeds
from trainer.metrics.censored import Array, concordance
from trainer.metrics.prediction_table import read_predictions
from trainer.metrics.survival_scores import Followed, followed, weighted_measures

FOLDS, INTERVALS = 5, 15
EPOCHS = {"whas500": 30, "gbsg2": 30, "flchain": 6}
LEFT_OUT = {"flchain": ("chapter",)}
NUMBERS = {"flchain": ("sample.yr",)}  # written as a category
RATES, RIDGES = (0.001, 0.003), (0.0001, 0.1, 1.0, 10.0, 100.0)
MEASURES = ("concordance", "integrated_brier")


@dataclass(frozen=True)
class Cohort:
    """A table: numbers (NaN = missing) and categories of each record, time, and whether it was seen."""

    name: str
    numbers: dict[str, Array]
    categories: dict[str, tuple[np.ndarray, tuple[str, ...]]]
    time: Array
    seen: np.ndarray

    def rows(self, fold: int, part: str) -> np.ndarray:
        """Record numbers of a part of a fold."""
        shares = [(str(number), 1 / FOLDS) for number in range(FOLDS)]
        own = [int(hashed_part(f"{self.name}{row}", shares)) for row in range(len(self.time))]
        parts = [{fold: "test", (fold + 1) % FOLDS: "val"}.get(number, "train") for number in own]
        return np.flatnonzero(np.array(parts) == part)


def load(name: str) -> Cohort:
    """A table of scikit-survival by name."""
    frame, outcome = getattr(datasets, f"load_{name}")()
    seen, time = (outcome[column] for column in outcome.dtype.names)
    columns = [column for column in frame.columns if column not in LEFT_OUT.get(name, ())]
    numeric = {c for c in columns if frame[c].dtype.kind == "f" or c in NUMBERS.get(name, ())}
    numbers = {c: frame[c].astype(float).to_numpy() for c in columns if c in numeric}
    categories = {
        c: (frame[c].cat.codes.to_numpy(), tuple(frame[c].cat.categories)) for c in columns if c not in numeric
    }
    return Cohort(name, numbers, categories, time.astype(float), seen.astype(bool))


def features(cohort: Cohort) -> tuple[list[str], Array, list[str], Array]:
    """Names and values of the two modalities: numbers with what is missing told apart, categories as 0 and 1."""
    names, columns = list(cohort.numbers), list(cohort.numbers.values())
    for name, value in cohort.numbers.items():
        if np.isnan(value).any():
            names.append(f"{name}_known")
            columns.append((~np.isnan(value)).astype(float))
    flags = {f"{name}_{word}": code == place for name, (code, words) in cohort.categories.items()
             for place, word in enumerate(words)}  # fmt: skip
    return names, np.stack(columns, axis=1), list(flags), np.stack(list(flags.values()), axis=1).astype(float)


class Patients(Source):
    """A cohort with the edges of one fold; `choose` has no test part, `score` has one."""

    def __init__(self, cohort: Cohort, fold: int) -> None:
        super().__init__(SourceOptions())
        self.names, self.numbers, self.flags, self.categories = features(cohort)
        self.cohort, train = cohort, cohort.rows(fold, "train")
        edges = edges_from(cohort.time[train], cohort.seen[train], INTERVALS)
        task = TaskSpec("life", "survival", edges=edges, unit="days")
        modalities = (
            ModalitySpec("numbers", "vector", channels=tuple(self.names)),
            ModalitySpec("categories", "vector", channels=tuple(self.flags)),
        )
        self.schema = DatasetSchema(cohort.name, modalities, (task,))
        # A missing number is the training part's mean, and its own feature says that it is missing.
        mean = np.nanmean(self.numbers[train], axis=0)
        self.numbers = np.where(np.isnan(self.numbers), mean, self.numbers).astype(np.float32)
        self.parts = {int(row): part for part in ("train", "val", "test") for row in cohort.rows(fold, part)}

    def units(self) -> Sequence[Any]:
        return [0]

    def read(self, unit: Any, notes: Counter[str]) -> Iterator[Record]:
        for row in range(len(self.cohort.time)):
            values = {"numbers": self.numbers[row], "categories": self.categories[row].astype(np.float32)}
            label = np.array([self.cohort.time[row], float(self.cohort.seen[row])])
            part = self.parts[row]
            splits = {"score": part} | ({} if part == "test" else {"choose": part})
            yield Record(f"r{row:06d}", dict(values), {"life": label}, splits)


def packed(work: Path, cohort: Cohort, fold: int) -> Path:
    """Where a fold of a cohort is packed."""
    folder = work / "data" / f"{cohort.name}_{fold}"
    if not (folder / "manifest.json").is_file():
        pack(Patients(cohort, fold), str(folder), chunk_records=64)
    return folder


def trained(work: Path, cohort: Cohort, fold: int, split: str, rate: float, seed: int) -> Path:
    """The folder of a run that has ended."""
    from trainer.jobs.job import run
    from trainer.worker.context import SingleContext

    name = f"{cohort.name}_{fold}_{split}_{rate:g}_{seed}"
    if not (work / "runs" / name / "result.json").is_file():
        training: dict[str, Any] = {"storage": str(work / "runs"), "epochs": EPOCHS[cohort.name], "seed": seed}
        training["early_stopping"] = {"metric": "val/concordance"}
        tree = {"name": name, "data": {"url": str(packed(work, cohort, fold)), "split": split, "workers": 0}}
        tree |= {"optim": {"lr": rate}, "training": training, "tracking": {"mlflow": False}}
        run(RunConfig.model_validate(tree), SingleContext())
        print(f"{name} has run", flush=True)
    return work / "runs" / name


def best_on_validation(run: Path) -> float:
    """The concordance that chose the epoch."""
    lines, name = (run / "metrics.jsonl").read_text().splitlines(), "val/concordance"
    logged = [json.loads(line).get("metrics", {}) for line in lines]
    return float(max(metrics[name] for metrics in logged if name in metrics))


def cox_inputs(cohort: Cohort, fold: int) -> Array:
    """What Cox regression sees of all records."""
    source = Patients(cohort, fold)
    first, place = [], 0
    for _, words in cohort.categories.values():
        first.append(place)
        place += len(words)
    x = np.concatenate([source.numbers, np.delete(source.categories, first, axis=1)], axis=1).astype(float)
    train = cohort.rows(fold, "train")
    spread = x[train].std(axis=0)
    return (x[:, spread > 0] - x[train].mean(axis=0)[spread > 0]) / spread[spread > 0]


def cox(cohort: Cohort, fold: int) -> tuple[CoxPHSurvivalAnalysis, Array, float, float]:
    """Fitted with the ridge that validation prefers: model, inputs of all records, ridge, validation concordance."""
    x, train, val = cox_inputs(cohort, fold), cohort.rows(fold, "train"), cohort.rows(fold, "val")
    labels = np.array(list(zip(cohort.seen, cohort.time, strict=True)), dtype=[("seen", bool), ("time", float)])
    found = []
    for ridge in RIDGES:
        model = CoxPHSurvivalAnalysis(alpha=ridge, n_iter=200).fit(x[train], labels[train])
        found.append((concordance(cohort.time[val], cohort.seen[val], model.predict(x[val])), ridge, model))
    score, ridge, model = max(found, key=lambda row: row[0])
    return model, x, ridge, score


def choose(work: Path, names: Sequence[str]) -> None:
    """Learning rates by validation, which are kept for `score`; what Cox regression has there."""
    kept: dict[str, float] = {}
    for name in names:
        cohort = load(name)
        means: dict[float, float] = {}
        for rate in RATES:
            runs = [trained(work, cohort, fold, "choose", rate, 0) for fold in range(FOLDS)]
            means[rate] = float(np.mean([best_on_validation(run) for run in runs]))
        kept[name] = max(means, key=lambda rate: means[rate])
        fitted = [cox(cohort, fold)[2:] for fold in range(FOLDS)]
        rows = [(f"FuseMoE, lr {rate:g}", value) for rate, value in means.items()]
        rows.append((f"Cox, alpha {[ridge for ridge, _ in fitted]}", float(np.mean([score for _, score in fitted]))))
        print(f"{name}: validation")
        table(("model", "concordance"), rows)
        (work / f"chosen_{name}.json").write_text(json.dumps(kept[name]))
    last_line("survival choose", kept)


def cox_followed(cohort: Cohort, fold: int, own: Followed) -> Followed:
    """The test part as Cox regression sees it, at the same edges."""
    model, x, *_ = cox(cohort, fold)
    rows = cohort.rows(fold, "test")
    curves = model.predict_survival_function(x[rows], return_array=True)
    place_T = np.searchsorted(model.unique_times_, own.edge_T, side="right")
    survival_BT = np.concatenate([np.ones((len(rows), 1)), curves], axis=1)[:, place_T]
    return Followed(own.time_B, own.seen_B, model.predict(x[rows]), own.edge_T, survival_BT)


def fold_draws(work: Path, cohort: Cohort, fold: int, seeds: Sequence[int]) -> dict[str, dict[str, Array]]:
    """Method -> measure -> the test part's value and its draws; of FuseMoE the mean over seeds."""
    rate = json.loads((work / f"chosen_{cohort.name}.json").read_text())
    runs, rows = [], cohort.rows(fold, "test")
    weights = draw_weights(len(rows), seed=fold)
    for seed in seeds:
        run = trained(work, cohort, fold, "score", rate, seed)
        (task,), kept = read_predictions(run / "predictions" / "test.parquet")
        assert kept.index_B.tolist() == rows.tolist(), "the same records in the same order"
        own = followed(task, kept.logits[task.name], kept.targets[task.name])
        runs.append({name: weighted_measures(own)[name](weights) for name in MEASURES})
    other = weighted_measures(cox_followed(cohort, fold, own))
    return {
        "FuseMoE": {name: mean_over_seeds(runs, name) for name in MEASURES},
        "Cox": {name: other[name](weights) for name in MEASURES},
    }


def score(work: Path, names: Sequence[str], seeds: Sequence[int]) -> None:
    """Both on the test parts, with intervals."""
    ratios, rows = {}, []
    for name in names:
        cohort = load(name)
        folds = [fold_draws(work, cohort, fold, seeds) for fold in range(FOLDS)]
        for measure in MEASURES:
            means = {method: np.mean([own[method][measure] for own in folds], axis=0) for method in folds[0]}
            means["FuseMoE - Cox"] = means["FuseMoE"] - means["Cox"]
            for method, drawn in means.items():
                found = interval(drawn)
                assert found is not None
                each = ", ".join(f"{own[method][measure][0]:.3f}" for own in folds) if method in folds[0] else ""
                rows.append((name, measure, method, f"{found.value:.4f}", f"{found.low:.4f} to {found.high:.4f}", each))
                ratios[f"{name}, {measure}, {method}"] = found.value
    table(("table", "measure", "model", "mean", "95 %", "each fold"), rows)
    last_line("survival score", ratios, seeds=list(seeds))


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("choose", "score"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tables", nargs="+", choices=tuple(EPOCHS), default=list(EPOCHS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    work = chosen.work.absolute()
    if chosen.what == "choose":
        choose(work, chosen.tables)
    else:
        score(work, chosen.tables, chosen.seeds)


if __name__ == "__main__":
    main()
