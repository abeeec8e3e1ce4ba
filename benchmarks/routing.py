"""Gates, routers, numbers of experts, and what brings irregular series to the grid: do they differ? Paired by seed.

    python -m benchmarks.routing DATA OUT [--seeds 0 1 2 3 4] [--variants softmax joint] [--report]

The plan, written down before a run of it was started:

- data: PhysioNet 2012, split1, recipe icu_physionet2012, a sixth of its length: 200 steps, the last weights.
- variants: VARIANTS, each the recipe with these keys changed and nothing else; disjoint pools need two experts a
  modality, so that router is compared with 64 experts of the recipe's.
- seeds: 0 to 4, of initial weights, dropout and order alike; a variant is compared with its reference of the same seed.
- figure: test AUROC and AUPRC, mean over seeds; the mean difference, with its 95 % interval by Student's t over seeds.
  That is the noise of training; that of the test records, which all share, is not in it.
- "differ" is said of a variant whose interval of AUROC excludes 0. Of nine variants one does so by chance every other
  time, so one such finding is a hint.

Runs that OUT already has are not made again. One process, one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import last_line, table, train_alone
from trainer.run_folder import RESULT

RECIPE = "icu_physionet2012"
SHORT = {"data.split": "split1", "training.max_steps": "200", "training.eval_every": "200"}
MANY = {"model.moe.experts": "64"}
VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
    "recipe": ("", {}),
    "softmax": ("recipe", {"model.moe.gate": "softmax"}),
    "gaussian": ("recipe", {"model.moe.gate": "gaussian"}),
    "bias": ("recipe", {"model.moe.gate_bias": "true"}),
    "joint": ("recipe", {"model.moe.router": "joint"}),
    "experts_4": ("recipe", {"model.moe.experts": "4"}),
    "experts_64": ("recipe", MANY),
    "disjoint_64": ("experts_64", {**MANY, "model.moe.router": "disjoint"}),
    "mtand": ("recipe", {"model.series.irregularity": "mtand"}),
    "imputation": ("recipe", {"model.series.irregularity": "imputation"}),
}
"""Variant -> what it is compared with, and the keys that it changes."""
METRICS = ("auroc", "auprc")


def metrics(out: Path, variant: str, seeds: Sequence[int]) -> dict[int, tuple[float, ...]]:
    """Of each finished seed."""
    files = {seed: out / f"{variant}_{seed}" / RESULT for seed in seeds}
    found = {seed: json.loads(file.read_text("utf-8"))["metrics"] for seed, file in files.items() if file.exists()}
    return {seed: tuple(own[f"test/{name}"] for name in METRICS) for seed, own in found.items()}


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval by Student's t."""
    from scipy.stats import t

    mean = statistics.mean(differences)
    half = float(t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / len(differences) ** 0.5
    return mean, mean - half, mean + half


def report(out: Path, seeds: Sequence[int]) -> None:
    rows, ratios = [], {}
    for variant, (reference, _) in VARIANTS.items():
        own, beside = metrics(out, variant, seeds), metrics(out, reference, seeds) if reference else {}
        if not own:
            continue
        row: list[object] = [variant, reference, len(own)]
        for number, metric in enumerate(METRICS):
            row.append(statistics.mean(values[number] for values in own.values()))
            paired = [own[seed][number] - beside[seed][number] for seed in own if seed in beside]
            cell = ""
            if len(paired) > 1:
                mean, low, high = interval(paired)
                cell, ratios[f"{variant} {metric}"] = f"{mean:+.4f} ({low:+.4f} to {high:+.4f})", mean
            row.append(cell)
        rows.append(row)
    table(["variant", "beside", "seeds", "auroc", "difference", "auprc", "difference"], rows)
    last_line("routing", ratios, seeds=list(seeds))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the packed data set")
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--report", action="store_true", help="make no run")
    chosen = parser.parse_args()
    for seed in chosen.seeds if not chosen.report else ():
        for variant in chosen.variants:
            changes = {**SHORT, **VARIANTS[variant][1]}
            train_alone(RECIPE, chosen.data, chosen.out, f"{variant}_{seed}", seed, changes)
    report(chosen.out, chosen.seeds)


if __name__ == "__main__":
    main()
