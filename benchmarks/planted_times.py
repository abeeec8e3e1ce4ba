"""Does the model learn when, in what order, in which window, and which pair? Made-up data with a known best score.

    python -m benchmarks.planted_times [--quick] [--kinds vector image waveform codes] [--work DIR] [--jobs 2]

For each label of the source `planted_times` (when and order of texts, or of the kinds that are asked for; the others of
codes; a pair among 100,000) packs made-up records, writes a recipe, and trains it as `python -m trainer RECIPE` does
it, in one process: the epoch is chosen by validation AUROC, the test part is scored once, at the end. The same with
times (of a pair: codes) that tell nothing, which must give chance: an interval of AUROC that holds 0.5. Where labels
can stand at a moment, also with one more object after it that shows the label, and with one that shows anything: a
model that cannot look ahead does equally well on both.

Settings are those of `RECIPE` and `CASES`, the first that were tried. A run that is in DIR already is not repeated. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.common import last_line, table
from trainer.metrics.bootstrap.intervals import Interval, draw_weights, interval, over_moments
from trainer.metrics.bootstrap.measures import task_measures
from trainer.metrics.prediction_table import read_predictions

RECIPE: dict[str, Any] = {
    "job": "fusemoe",
    "model": {"dim": 32, "layers": 1, "heads": 4, "bins": 12, "dropout": 0.0, "text": {"tokens": 1},
              "moe": {"experts": 4, "top_k": 2, "hidden": 64}},
    "optim": {"lr": 0.003, "weight_decay": 0.05},
    "training": {"batch_size": 64, "log_every": 100, "early_stopping": {"metric": "val/auroc"}},
    "tracking": {"mlflow": False},
}  # fmt: skip
OF_KINDS = ("when", "order")
LATE = ("when", "order", "window")  # labels that can stand at a moment, with an object behind it
QUICK = 4  # as many times fewer records
FORMS = ("plain", "shuffled", "late random", "late label")


@dataclass(frozen=True)
class Case:
    """How many records of a label are made, how often the training part is passed, and the source's other options."""

    records: int
    epochs: int
    options: tuple[tuple[str, int], ...] = ()


CASES = {
    "when": Case(3000, 8),
    "order": Case(3000, 8),
    "window": Case(6000, 4),
    "pair": Case(16000, 3, (("codes", 100_000),)),
    "hourly": Case(1000, 2),
}


@dataclass(frozen=True)
class Trial:
    """One run: a label, the kind of its objects, and one of `FORMS`."""

    label: str
    kind: str
    form: str

    @property
    def name(self) -> str:
        return f"{self.label}_{self.kind}_{self.form.replace(' ', '_')}"

    def options(self, records: int, seed: int) -> dict[str, Any]:
        """Of the source."""
        late = self.form.split()[1] if self.form.startswith("late") else "none"
        kind = {"kind": self.kind} if self.label in OF_KINDS else {}
        shuffle = self.form == "shuffled"
        return {"label": self.label, **kind, "records": records, "seed": seed, "late": late, "shuffle": shuffle}


@dataclass(frozen=True)
class Outcome:
    """Test scores of a run, the best possible ones, and the interval of AUROC over records."""

    auroc: float
    accuracy: float
    best: dict[str, float]
    interval: Interval


def trials(kinds: Sequence[str]) -> list[Trial]:
    """Texts and codes in every form; `kinds` are those of further objects, without what comes late."""
    own = [Trial(label, "text" if label in OF_KINDS else "codes", form) for label in CASES for form in FORMS
           if not form.startswith("late") or label in LATE]  # fmt: skip
    return own + [Trial(label, kind, form) for label in OF_KINDS for kind in kinds for form in FORMS[:2]]


def command(*words: str) -> str:
    """The last line that a command of this project says. Raises RuntimeError with its last words if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-500:]}")
    return done.stdout.strip().splitlines()[-1]


def carry_out(trial: Trial, work: Path, seed: int, quick: bool) -> Outcome:
    """Pack, train and score; what is there already is only read."""
    case = CASES[trial.label]
    data, run = work / "data" / trial.name, work / "runs" / trial.name
    options = trial.options(case.records // (QUICK if quick else 1), seed) | dict(case.options)
    if not (data / "manifest.json").is_file():
        given = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        command("launch", "pack", "planted_times", "--out", str(data), *given)
    if not (run / "result.json").is_file():
        training = {**RECIPE["training"], "epochs": case.epochs, "seed": seed, "storage": str(work / "runs")}
        recipe = {**RECIPE, "name": trial.name, "data": {"url": str(data)}, "training": training}
        file = work / f"{trial.name}.yaml"
        file.write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
        command("trainer", str(file))
    return outcome(data, run)


def outcome(data: Path, run: Path) -> Outcome:
    """Of a run that has ended."""
    best = json.loads((data / "manifest.json").read_text())["source"]["best_score"]["answer"]
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    (task,), kept = read_predictions(run / "predictions" / "test.parquet")
    records, row_B = np.unique(kept.index_B.numpy(), return_inverse=True)
    measure = task_measures(task, kept.logits[task.name], kept.targets[task.name])["auroc"]
    found = interval(over_moments(measure, row_B)(draw_weights(len(records))))
    assert found is not None, "the test part has both labels"
    return Outcome(metrics["test/auroc"], metrics["test/accuracy"], best, found)


def show(outcomes: dict[Trial, Outcome]) -> dict[str, float]:
    """Print the tables; returns their figures by name."""
    figures: dict[str, float] = {}
    rows, late = [], []
    for trial, own in outcomes.items():
        if trial.form == "plain":
            chance = outcomes[Trial(trial.label, trial.kind, "shuffled")]
            shares = [own.auroc / own.best["auroc"], own.accuracy / own.best["accuracy"]]
            figures |= {f"{trial.label}, {trial.kind}": shares[0]}
            figures |= {f"{trial.label}, {trial.kind}, shuffled": chance.auroc}
            scores = [f"{own.best[n]:.3f} {getattr(own, n):.3f} {share:.3f}"
                      for n, share in zip(("auroc", "accuracy"), shares, strict=True)]  # fmt: skip
            around = f"{chance.auroc:.3f} ({chance.interval.low:.3f} to {chance.interval.high:.3f})"
            rows.append((trial.label, trial.kind, *scores, around))
        elif trial.form == "late label":
            without = outcomes[Trial(trial.label, trial.kind, "late random")]
            figures |= {f"{trial.label}, {trial.kind}, late label - late random": own.auroc - without.auroc}
            late.append((trial.label, trial.kind, own.best["auroc"], without.auroc, own.auroc))
    table(("label", "kind", "AUROC: best, ours, share", "accuracy: best, ours, share", "AUROC if shuffled"), rows)
    table(("label at a moment", "kind", "best AUROC", "later object: any", "later object: the label"), late)
    return figures


def main() -> None:
    """Parse, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"1 / {QUICK} of the records: to see that it works")
    parser.add_argument("--kinds", nargs="*", default=[], choices=("vector", "image", "waveform", "codes"))
    parser.add_argument("--work", type=Path, help="folder for data and runs, which are kept; none: nothing is kept")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--seed", type=int, default=0, help="of the records and of the model")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(chosen.jobs) as pool:
        work = (chosen.work or Path(folder)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        todo = trials(chosen.kinds)
        found = pool.map(lambda trial: carry_out(trial, work, chosen.seed, chosen.quick), todo)
        figures = show(dict(zip(todo, found, strict=True)))
    last_line("planted_times", figures, quick=chosen.quick, seed=chosen.seed)


if __name__ == "__main__":
    main()
