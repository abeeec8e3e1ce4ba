"""Does a task lose when its data set shares a model with another one?

    python -m benchmarks.mixture [--seed 0]

Packs the digits and a made-up data set of other modalities, trains the recipe `mixture` on both together and on each
alone with the same settings, in this process, and prints each task's test accuracy and the difference. An epoch passes
every record once in either case, so a data set gets as many passes alone as it gets in the mixture. The last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from data_shards import create_source, pack
from trainer.config.recipe import load_recipe
from trainer.jobs.job import run
from trainer.worker.console import show_logs
from trainer.worker.context import SingleContext

MADE_UP = {"records": 4000, "noise": 0.6, "modalities": "series:2,vector:2,text:1"}
TASKS = {"digits": "digit", "made_up": "label"}
ALONE = ("parallel.workers=1", "parallel.expert_parallel=1", "tracking.mlflow=false", "training.log_every=100")


def train(name: str, folder: Path, seed: int, *overrides: str) -> dict[str, Any]:
    """Test metrics of one run."""
    place = (f"name={name}", f"training.storage={folder}/runs", f"training.seed={seed}")
    result = run(load_recipe("mixture", [*ALONE, *place, *overrides]), SingleContext("cpu"))
    metrics: dict[str, Any] = result["metrics"]
    return metrics


def compare(folder: Path, seed: int) -> dict[str, Any]:
    """Accuracy of each task, together and alone, and the best that is possible where that is known."""
    pack(create_source("digits"), f"{folder}/digits")
    report = pack(create_source("synthetic", MADE_UP), f"{folder}/made_up")
    both = [f"data.mixture.{name}.url={folder}/{name}" for name in TASKS]
    together = train("together", folder, seed, *both)
    table: dict[str, Any] = {"seed": seed, "best": {"made_up": report["source"]["best_score"]["label"]["accuracy"]}}
    for name, task in TASKS.items():
        only = ("data.mixture={}", f"data.url={folder}/{name}", f"training.tasks=[{task}]")
        alone = train(name, folder, seed, *only)["test/accuracy"]
        shared = together[f"test/{name}-{task}/accuracy"]
        table[name] = {"together": shared, "alone": alone, "difference": shared - alone}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    show_logs()
    with tempfile.TemporaryDirectory() as folder:
        table = compare(Path(folder), chosen.seed)
    for name in TASKS:
        print(name, *(f"{what} {value:.4f}" for what, value in table[name].items()))
    print(json.dumps(table))


if __name__ == "__main__":
    main()
