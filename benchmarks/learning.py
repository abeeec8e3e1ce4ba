"""What a change to what the model sees, or how it learns, is worth: every one beside the recipe as it is, paired.

    python -m benchmarks.learning physionet2012 DATA OUT [--variants A B] [--seeds 0 1]
    python -m benchmarks.learning physionet2012 DATA OUT --report

The plan, written down before a run of it was started:

- data: PhysioNet 2012, split1, recipe icu_physionet2012 as shipped, all its epochs; sepsis2019b, split default, a
  recipe that names nothing but the data, 3 epochs, early stopping on val/auroc.
- variants: VARIANTS; each is the recipe with these keys changed and nothing else.
- seeds: 0 and 1, of initial weights, dropout and order alike; a variant is compared with `base` of the same seed.
- selection: the evaluation of the validation part with the largest val/auroc, of which AUROC and AUPRC are given. What
  this says is where validation moved. Test parts are not read: result.json of a run has them, and nothing here looks.
- a default changes only if AUROC rises on both data with every seed, and no time of a step grows by more than a tenth;
  two seeds are a direction. The standard error of one AUROC is about .015 on these parts, that of a paired difference
  about .004.

Runs that OUT already has are not made again. One process, one thread; wall seconds are given, to be read beside the
load.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import table, train_alone
from trainer.run_folder import METRICS

RECIPES: dict[str, tuple[str, dict[str, str]]] = {
    "physionet2012": ("icu_physionet2012", {"data.split": "split1"}),
    "sepsis2019b": ("plain", {"training.epochs": "3", "training.early_stopping.metric": "val/auroc"}),
}
# What the recipe had before it had what this chose.
PLAIN = {"model.scale": "standard", "model.series.statistics": "none"}
TOKEN = {"model.series.statistics": "token"}
QUANTILE = {"model.scale": "quantile"}
VARIANTS: dict[str, dict[str, str]] = {
    "base": PLAIN,
    "token": {**PLAIN, **TOKEN},
    "token_quantile": {**TOKEN, **QUANTILE},
    "quantile": {**PLAIN, **QUANTILE},
    "piecewise": {**TOKEN, **QUANTILE, "model.vector.numbers": "piecewise"},
    "start": {**PLAIN, "model.head.start": "base"},
    "skip": {**TOKEN, **QUANTILE, "model.head.skip": "linear"},
    "skip_ema": {**TOKEN, **QUANTILE, "model.head.skip": "linear", "optim.ema": "0.98"},
}
FIRST = ("base", "token", "token_quantile")


class Best(NamedTuple):
    """The best evaluation of a run's validation part."""

    step: int
    auroc: float
    auprc: float
    seconds: float


def train(name: str, data: str, out: Path, variant: str, seed: int, split: str | None = None) -> Path:
    """The folder of the run, which is made if it has not been finished. `split`: another than the recipe's."""
    recipe, changes = RECIPES[name]
    run = f"{name}_{variant}_{seed}" if split in (None, "split1", "default") else f"{name}_{variant}_{split}_{seed}"
    if recipe == "plain":
        out.mkdir(parents=True, exist_ok=True)
        plain = out / "plain.yaml"
        plain.write_text("job: fusemoe\ndata: {url: none}\n", encoding="utf-8")
        recipe = str(plain)
    settings = {**changes, **VARIANTS[variant], **({} if split is None else {"data.split": split})}
    return train_alone(recipe, data, out, run, seed, settings)


def best(folder: Path) -> Best:
    """Of the validation part. Raises ValueError: it was never evaluated."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in (folder / METRICS).read_text("utf-8").splitlines()]
    times = [line["time"] for line in lines if "time" in line]
    found = [
        Best(line["step"], line["metrics"]["val/auroc"], line["metrics"]["val/auprc"], times[-1] - times[0])
        for line in lines
        if "val/auroc" in line.get("metrics", {})
    ]
    return max(found, key=lambda one: one.auroc)


def report(name: str, out: Path) -> None:
    """Every finished run beside the recipe of the same seed."""
    rows = []
    for variant in VARIANTS:
        differences = []
        for folder in sorted(out.glob(f"{name}_{variant}_[0-9]*")):
            if not (folder / "result.json").exists():
                continue
            own, base = best(folder), out / f"{name}_base_{folder.name.rpartition('_')[2]}"
            row = [variant, folder.name.rpartition("_")[2], own.step, own.auroc, own.auprc, own.seconds]
            if variant != "base" and (base / "result.json").exists():
                beside = best(base)
                differences.append((own.auroc - beside.auroc, own.auprc - beside.auprc))
                row += [f"{value:+.4f}" for value in differences[-1]]
            rows.append(row + [""] * (8 - len(row)))
        if len(differences) > 1:
            means = [f"{statistics.mean(column):+.4f}" for column in zip(*differences, strict=True)]
            rows.append([variant, "mean", "", "", "", "", *means])
    table(["variant", "seed", "step", "auroc", "auprc", "seconds", "d auroc", "d auprc"], rows)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("data", help="the packed data set")
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=FIRST)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--report", action="store_true", help="make no run")
    chosen = parser.parse_args()
    if not chosen.report:
        for seed in chosen.seeds:
            for variant in chosen.variants:
                train(chosen.name, chosen.data, chosen.out, variant, seed)
    report(chosen.name, chosen.out)


if __name__ == "__main__":
    main()
