"""How much data it takes: ours and boosted trees, learned from a tenth, a third and all of the training records.

    python -m benchmarks.learning_curve DIR WORK [--split split1] [--seeds 0] [--shares 0.1 0.3 1.0] [key=value ...]

DIR is PhysioNet 2012 as published, with raindrop_splits.csv. The plan, written before a test part was scored:

- records: of the split's training part the first tenth, three tenths and all, in an order that a digest of their
  numbers gives, so that each share holds the smaller ones; validation and test parts stay whole. They are splits of
  their own in one packed data set, so that also quantiles and label frequencies are those of the share.
- ours: `preset: good` and the data, nothing else, for every share; `key=value` changes it for all. Trees:
  `baseline --model trees`, chosen by validation as for everybody.
- figure: test AUROC and AUPRC, mean over seeds, against records, with 95 % of 1,000 draws of the test records for the
  difference. WORK/learning_curve.svg has both.

Runs that WORK has are not made again. One process, one thread.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import last_line, table
from benchmarks.together import METRICS, mean_draws
from data_shards import create_source, open_manifest, pack
from launch.runs.baseline import make_baselines
from trainer.config.recipe import recipe_of
from trainer.jobs.job import run
from trainer.metrics.bootstrap.intervals import difference, interval
from trainer.run_folder import RESULT
from trainer.worker.context import SingleContext

TASK = "in_hospital_death"


def name_of(split: str, share: float) -> str:
    return f"{split}_{round(100 * share):03d}"


def with_shares(source: Path, out: Path, split: str, shares: list[float]) -> Path:
    """A table of splits: of each share one, in which the other training records have no part."""
    with (source / "raindrop_splits.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    order = sorted(
        (row["RecordID"] for row in rows if row[split] == "train"), key=lambda id: hashlib.sha256(id.encode()).digest()
    )
    kept = {share: set(order[: round(share * len(order))]) for share in shares}
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["RecordID", *(name_of(split, share) for share in shares)])
        for row in rows:
            left = row["RecordID"], row[split]
            cells = ["" if left[1] == "train" and left[0] not in kept[share] else left[1] for share in shares]
            writer.writerow([left[0], *cells])
    return out


def packed(source: Path, work: Path, split: str, shares: list[float]) -> str:
    out = work / f"data_{split}"
    if not (out / "manifest.json").is_file():
        work.mkdir(parents=True, exist_ok=True)
        splits = with_shares(source, work / f"{split}.csv", split, shares)
        pack(create_source("physionet2012", {"path": str(source), "splits": str(splits)}), str(out))
    return str(out)


def ours(data: str, split: str, work: Path, seed: int, changes: list[str]) -> Path:
    tree: dict[str, Any] = {"name": f"{split}_ours_{seed}", "preset": "good", "data": {"url": data, "split": split}}
    tree["training"] = {"storage": str(work / "runs"), "seed": seed, "tasks": [TASK], "log_every": 1000}
    folder = work / "runs" / str(tree["name"])
    if not (folder / RESULT).is_file():
        run(recipe_of({**tree, "tracking": {"mlflow": False}}, changes, split, "recipe"), SingleContext())
    return folder


def trees(data: str, split: str, work: Path) -> Path:
    folder = work / "runs" / f"{split}-trees"
    if not (folder / RESULT).is_file():
        words = [f"name={split}", f"training.storage={work / 'runs'}", "tracking.mlflow=false"]
        make_baselines(data, split, "trees", [*words, f"training.tasks=[{TASK}]"])
    return folder


def draw(points: dict[str, dict[str, list[tuple[int, float]]]], file: Path) -> None:
    """`points`: metric -> model -> (training records, value)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.4))
    for axes, (metric, models) in zip(figure.subplots(1, len(points)), points.items(), strict=True):
        for model, own in models.items():
            axes.plot(*zip(*own, strict=True), marker="o", label=model)
        axes.set(xscale="log", xlabel="training records", ylabel=f"test {metric.upper()}")
        axes.legend()
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path, help="folder for data and runs, which are kept")
    parser.add_argument("changes", nargs="*", help="overrides of the recipe for all shares, section.key=value")
    parser.add_argument("--split", default="split1")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.1, 0.3, 1.0])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    work = chosen.work.absolute()
    data = packed(chosen.source.absolute(), work, chosen.split, chosen.shares)
    counts, rows, ratios = open_manifest(data).splits, [], {}
    points: dict[str, dict[str, list[tuple[int, float]]]] = {metric: {"ours": [], "trees": []} for metric in METRICS}
    for share in chosen.shares:
        split = name_of(chosen.split, share)
        runs = [ours(data, split, work, seed, chosen.changes) for seed in chosen.seeds]
        own, beside = mean_draws(runs), mean_draws([trees(data, split, work)])
        row: list[Any] = [f"{share:.0%}", counts[split]["train"]]
        for metric in METRICS:
            values, other = (interval(found[metric]) for found in (own, beside))
            apart = difference(own[metric], beside[metric])
            assert values is not None and other is not None and apart is not None
            row += [values.value, other.value, f"{apart.value:+.4f} {apart.low:+.4f} {apart.high:+.4f}"]
            ratios[f"{share:.0%} {metric}"] = apart.value
            for model, found in (("ours", values), ("trees", other)):
                points[metric][model].append((counts[split]["train"], found.value))
        rows.append(row)
        print(row, flush=True)
    head = [word for metric in METRICS for word in (f"{metric} ours", "trees", "ours - trees")]
    table(["share", "records", *head], rows)
    draw(points, work / "learning_curve.svg")
    last_line("learning_curve", ratios, split=chosen.split, seeds=chosen.seeds, changes=chosen.changes)


if __name__ == "__main__":
    main()
