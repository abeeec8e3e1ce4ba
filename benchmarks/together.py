"""What one run, several seeds together, and a blend with trees reach on test, beside the trees alone.

    python -m benchmarks.together physionet2012 DATA OUT --splits split1 split2 split3 [--seeds 0 1]

The plan, written down before a test part was looked at:

- a single model is the variant that `benchmarks.learning` chose on validation (`--variant`), with the recipe's epochs
  and early stopping; its figure is the mean over seeds.
- the trees are `baseline --model trees`, chosen by validation as it does for everybody.
- the ensemble is the equal mean of all seeds; the blend is that with the trees, by a weight that validation chose.
- of each the test AUROC and AUPRC on every split, and the difference to the trees with 95 % of 1,000 draws of the test
  records, paired; at the end means over splits. All that was trained is in the table; nothing is chosen after it.

Runs that OUT already has are not made again. One process, one thread.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import table
from benchmarks.learning import RECIPES, VARIANTS, train
from launch.runs.baseline import make_baselines
from launch.runs.ensemble import make_ensemble
from trainer.metrics.bootstrap.intervals import Array, difference, draw_weights, interval
from trainer.metrics.bootstrap.measures import task_measures
from trainer.metrics.prediction_table import read_predictions
from trainer.run_folder import RESULT, TEST_PREDICTIONS

METRICS = ("auroc", "auprc")


def draws(folder: Path) -> dict[str, Array]:
    """Metric -> its value on the test part, then on each draw of its records."""
    (task,), said = read_predictions(folder / TEST_PREDICTIONS)
    found = task_measures(task, said.logits[task.name], said.targets[task.name])
    weight_RB = draw_weights(len(said))
    return {name: found[name](weight_RB) for name in METRICS}


def mean_draws(folders: Sequence[Path]) -> dict[str, Array]:
    """The same, averaged over runs within each draw."""
    each = [draws(folder) for folder in folders]
    return {name: sum(own[name] for own in each) / len(each) for name in METRICS}


def baseline(name: str, data: str, out: Path, split: str) -> Path:
    run = f"trees_{split}"
    if not (out / f"{run}-trees" / RESULT).exists():
        words = [f"name={run}", f"training.storage={out}", "tracking.mlflow=false"]
        wanted = ["training.tasks=[in_hospital_death]"] if name == "physionet2012" else []
        make_baselines(data, split, "trees", [*words, *wanted])
    return out / f"{run}-trees"


def together(out: Path, run: str, members: Sequence[Path], blend: Path | None) -> Path:
    if not (out / run / RESULT).exists():
        words = [f"name={run}", f"training.storage={out}", "tracking.mlflow=false"]
        make_ensemble([str(member) for member in members], None if blend is None else str(blend), words)
    return out / run


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("data", help="the packed data set")
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--splits", nargs="+", default=["default"])
    parser.add_argument("--variant", choices=VARIANTS, default="token_quantile")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--train", action="store_true", help="only train what is missing, and score nothing")
    chosen = parser.parse_args()
    rows, means = [], dict[str, list[list[float]]]()
    for split in chosen.splits:
        runs = [train(chosen.name, chosen.data, chosen.out, chosen.variant, seed, split) for seed in chosen.seeds]
        trees = baseline(chosen.name, chosen.data, chosen.out, split)
        if chosen.train:
            continue
        seeds = "_".join(map(str, chosen.seeds))  # in the name, as other seeds are another ensemble
        stem = f"{chosen.name}_{chosen.variant}_{split}_of_{seeds}"
        parts = {"trees": [trees], "single": runs, "ensemble": [together(chosen.out, f"{stem}_all", runs, None)]}
        parts["blend"] = [together(chosen.out, f"{stem}_blend", runs, trees)]
        beside = mean_draws(parts["trees"])
        for what, folders in parts.items():
            row: list[object] = [split, what]
            own = mean_draws(folders)
            for metric in METRICS:
                found, other = interval(own[metric]), difference(own[metric], beside[metric])
                assert found is not None and other is not None
                means.setdefault(f"{what} {metric}", []).append([found.value, other.value])
                row += [
                    found.value,
                    "" if what == "trees" else f"{other.value:+.4f} {other.low:+.4f} {other.high:+.4f}",
                ]
            rows.append(row)
    for what in ("trees", "single", "ensemble", "blend") if rows else ():
        cells: list[object] = []
        for metric in METRICS:
            value, change = (statistics.mean(column) for column in zip(*means[f"{what} {metric}"], strict=True))
            cells += [value, f"{change:+.4f}"]
        rows.append(["mean", what, *cells])
    table(["split", "model", "auroc", "to trees", "auprc", "to trees"], rows)


if __name__ == "__main__":
    main()
