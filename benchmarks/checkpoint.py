"""What a checkpoint costs: how long training stands still for it, and how many bytes it writes.

    python -m benchmarks.checkpoint [--quick] [--scale]

Trains real steps in one process and saves every few of them through the writer that runs use. `stall` is the time that
`save` keeps the loop (copying state, agreeing, waiting for an unfinished predecessor) over a step's time;
`while_writing` is a step during the background write over a step without; `bytes` is what lies on disk over a floor of
12 bytes a parameter (fp32 master and two Adam moments). The last line is one JSON object.

With `--scale`: files, requests and seconds of a save by 1,024 ranks, and what other numbers of ranks read of it
(`benchmarks/checkpoint_scale.py`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from itertools import chain
from pathlib import Path

import numpy as np

from benchmarks.checkpoint_scale import measure as measure_scale
from data_shards import create_source, open_manifest, pack
from trainer.checkpoints.find import committed_paths
from trainer.checkpoints.writer import CheckpointWriter
from trainer.config.recipe import load_recipe
from trainer.jobs.train import describe_run
from trainer.session import build_session
from trainer.tracking.tracker import Tracker
from trainer.training.loop import TrainingLoop
from trainer.training.progress import Progress
from trainer.worker.context import SingleContext

CASES = {"digits": (), "wide": ("model.dim=128", "model.moe.experts=64", "model.moe.hidden=256")}
RATIOS = ("stall", "worst_stall", "while_writing", "bytes")


def measure(folder: Path, name: str, overrides: tuple[str, ...], rounds: int) -> dict[str, float]:
    """Ratios of one model."""
    fixed = ("parallel.workers=1", "parallel.expert_parallel=1", "training.epochs=1000", "tracking.mlflow=false")
    config = load_recipe("digits", [f"data.url={folder}/data", f"training.storage={folder}/{name}", *fixed, *overrides])
    manifest = open_manifest(config.data.url, {})
    session = build_session(config, SingleContext("cpu"), manifest, manifest.schema, manifest.statistics["default"])
    writer = CheckpointWriter(config.run_dir, 0, 1, "benchmark", keep_last=1, keep_best=0)
    loop = TrainingLoop(session, Tracker(), writer, describe_run(session, None), Progress(), {})
    session.engine.train()
    steps = chain.from_iterable(loop.loader.steps(epoch) for epoch in range(10_000))
    step_s: list[float] = []
    stall_s: list[float] = []
    busy_s: list[float] = []

    def step() -> float:
        begin = time.perf_counter()
        loop._train_step(next(steps))
        return time.perf_counter() - begin

    for _ in range(3):
        step()
    for _ in range(rounds):
        step_s += [step() for _ in range(3)]
        begin = time.perf_counter()
        loop._save()
        stall_s.append(time.perf_counter() - begin)
        while not writer._written.is_set():
            busy_s.append(step())
        writer.settle()
    written = sum(path.stat().st_size for path in Path(committed_paths(config.run_dir)[0]).iterdir())
    parameters = sum(int(np.prod(shape)) for shape in session.engine.logical_parameters().values())
    session.close()
    base = statistics.median(step_s)
    return {
        "parameters": parameters,
        "step_ms": base * 1e3,
        "stall_ms": statistics.median(stall_s) * 1e3,
        "stall": statistics.median(stall_s) / base,
        "worst_stall": max(stall_s) / base,
        "while_writing": statistics.median(busy_s) / base if busy_s else 1.0,
        "bytes": written / (12 * parameters),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--scale", action="store_true", help="a made-up world of 1,024 ranks instead of real steps")
    options = parser.parse_args()
    if options.scale:
        print(json.dumps({"ratios": measure_scale(options.quick)}))
        return
    rounds = 4 if options.quick else 15
    ratios = {}
    with tempfile.TemporaryDirectory(prefix="checkpoint_") as folder:
        pack(create_source("digits"), f"{folder}/data")
        for name, overrides in CASES.items():
            result = measure(Path(folder), name, overrides, rounds)
            print(f"{name:8}" + "  ".join(f"{key} {value:,.3f}" for key, value in result.items()), flush=True)
            ratios |= {
                f"{name} {key}": round(result[key], 4) for key in ("stall", "worst_stall", "while_writing", "bytes")
            }
    print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
