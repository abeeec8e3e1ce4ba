"""Does a run that is killed again and again end as if nothing had happened?

    python -m benchmarks.survive --kills 20 --seed 0 [--data times | grown]

Trains a small recipe twice under Ray on two expert-parallel workers: once undisturbed, once while a worker, all of
them, or the driver are killed with SIGKILL at random moments: in a step, a checkpoint, an evaluation. Then compares
records lost or repeated in any epoch (from the trace that the workers write), final weights and moments bit for bit,
and the loss curve in MLflow point for point. Prints what it does; the last line is one JSON object. In it `recovery_s`
is the median time from the kill of workers to the next new step, and `phases_s` what it is made of.

The records are handwritten digits in eight modalities, or with `--data times` codes at times with labels at moments,
looked up in a table that is spread over the workers; with `--data grown` the digits came in three packs, each appended
to those before.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.finished_run import lost_and_repeated, newest_checkpoint, run_status
from data_shards import create_source, open_manifest, pack
from data_shards.paths import absolute_path
from data_shards.shards.reader import read_index
from data_shards.sources.base import Source
from data_shards.sources.digits import Digits, DigitsOptions
from trainer.tracking.mlflow_client import metric_history
from trainer.training.record_trace import delivered

logger = logging.getLogger("survive")

WEIGHTS = {"worker": 6, "workers": 2, "driver": 2}
VICTIMS = tuple(WEIGHTS)
CHECKPOINT_EVERY, EVALUATE_EVERY, STEPS_PER_EPOCH = 5, 10, 20
PATIENCE_S = 180.0


class SomeDigits(Digits):
    """Some of the units of digits."""

    def __init__(self, own: slice) -> None:
        super().__init__(DigitsOptions())
        self.own = own

    def units(self) -> list[tuple[int, int]]:
        """As `Digits.units`."""
        return super().units()[self.own]


DATA: dict[str, Callable[[], list[Source]]] = {
    "digits": lambda: [create_source("digits", {})],
    # About as many samples as digits has: moments of 80 records
    "times": lambda: [create_source("planted_times", {"label": "hourly", "records": "80", "codes": "20000"})],
    "grown": lambda: [SomeDigits(slice(*bounds)) for bounds in ((0, 2), (2, 3), (3, None))],
}
"""What is packed, one after the other into one data set."""


@dataclass
class Kill:
    """One kill: who, when in the cycle of a step, and how long until the next new step, in seconds."""

    victim: str
    moment: str
    step: int
    recovery_s: float = 0.0


@dataclass
class Run:
    """A training process (driver) and the files by which it shows how far it is."""

    folder: Path
    data: Path
    name: str
    epochs: int
    patience_s: float = PATIENCE_S
    process: subprocess.Popen[bytes] | None = None
    kills: list[Kill] = field(default_factory=list)
    orphans: list[psutil.Process] = field(default_factory=list)
    """Processes of the Ray of a killed driver. Two agents of each live on for a minute and try to reach it."""

    @property
    def path(self) -> Path:
        return self.folder / "runs" / self.name

    def start(self) -> None:
        """Start, or start again, the very same command."""
        settings = {
            "data.url": self.data,
            "name": self.name,
            "training.storage": self.folder / "runs",
            "training.epochs": self.epochs,
            "training.log_every": 1,
            "training.eval_every": EVALUATE_EVERY,
            "training.checkpoint.every": CHECKPOINT_EVERY,
            "training.trace_records": "true",
            "tracking.uri": f"sqlite:///{self.folder}/mlflow.db",
            "cluster.max_failures": 10_000,
        }
        command = [sys.executable, "-m", "launch", "train", "digits", *(f"{k}={v}" for k, v in settings.items())]
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def workers(self) -> list[psutil.Process]:
        """The live training workers below the driver."""
        assert self.process is not None
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if "RayTrainWorker" in " ".join(child.cmdline()):
                    found.append(child)
            except psutil.Error:
                continue
        return found

    def last_step(self) -> tuple[int, float]:
        """Newest logged step and the time of its line; (0, 0) before the first."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return 0, 0.0
        for line in reversed(path.read_text(encoding="utf-8").splitlines()):
            if '"train/loss"' in line and line.endswith("}"):
                entry = json.loads(line)
                return entry["step"], entry["time"]
        return 0, 0.0

    def starts(self) -> list[dict[str, float]]:
        """Seconds of each phase of every start that followed a failure of workers, as the workers account for them."""
        path = self.path / "metrics.jsonl"
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if "lifecycle/" in line]
        found = [entry["metrics"] for entry in entries if entry["metrics"]["lifecycle/attempt"] > 1]
        return [{name.removeprefix("lifecycle/"): value for name, value in metrics.items()} for metrics in found]

    def ended(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def wait(self) -> None:
        """To the end. Raises RuntimeError if the command failed."""
        assert self.process is not None
        if self.process.wait() != 0:
            raise RuntimeError(f"run {self.name} ended with exit code {self.process.returncode}, see {self.folder}")


def until(run: Run, condition: Callable[[], bool]) -> bool:
    """Poll until the condition holds; False if the run ended first. Raises TimeoutError."""
    deadline = time.monotonic() + run.patience_s
    while not condition():
        if run.ended():
            return False
        if time.monotonic() > deadline:
            raise TimeoutError(f"run {run.name} made no progress for {run.patience_s:.0f} s, see {run.folder}")
        time.sleep(0.003)
    return True


def moment_reached(run: Run, moment: str) -> Callable[[], bool]:
    """A condition that becomes true in the middle of a step, a checkpoint or an evaluation."""
    if moment == "checkpoint":
        return lambda: any(not (p / "COMMIT").exists() for p in run.path.glob("checkpoints/step-*"))
    if moment == "evaluation":
        seen = run.last_step()[0]
        return lambda: run.last_step()[0] > seen and run.last_step()[0] % EVALUATE_EVERY == 0
    return lambda: True


def kill_once(run: Run, rng: random.Random, kinds: list[str]) -> bool:
    """Wait for a random moment, kill, and wait for the next new step. False if the run ended before."""
    victim = rng.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0]
    moment = rng.choices(["step", "checkpoint", "evaluation"], [4, 3, 3])[0]
    start, patience = run.last_step()[0], rng.randint(1, 9)
    if not until(run, lambda: run.last_step()[0] >= start + patience):
        return False
    if not until(run, moment_reached(run, moment)):
        return False
    time.sleep(rng.uniform(0, 0.15))
    workers = run.workers()
    if run.ended() or not workers:
        return not run.ended()
    kill = Kill(victim, moment, run.last_step()[0])
    at = time.time()
    gone = _kill(run, victim, workers, rng)
    if not until(run, lambda: run.last_step()[1] > gone):
        return False
    kill.recovery_s = run.last_step()[1] - at
    run.kills.append(kill)
    what = f"{victim} during {moment} at step {kill.step}"
    logger.info("kill %d: %s, next step after %.1f s", len(run.kills), what, kill.recovery_s)
    return True


def _kill(run: Run, victim: str, workers: list[psutil.Process], rng: random.Random) -> float:
    """Kill; the time after which a step can only be a new one."""
    assert run.process is not None
    if victim == "driver":
        run.orphans += psutil.Process(run.process.pid).children(recursive=True)
        run.process.kill()
        run.process.wait()
        # At once, as whoever watches over a command does: the lease keeps the old workers from writing.
        run.start()
        # They end by themselves within seconds, long before the new ones are there: a later step is a new one.
        psutil.wait_procs(workers, timeout=20)
        return time.time()
    victims = [rng.choice(workers)] if victim == "worker" else workers
    for process in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(victims, timeout=20)
    # A survivor cannot finish a step without the others, but the line of the step before may still be on its way.
    return time.time() + 0.2


def final_state(run: Run) -> dict[str, np.ndarray]:
    """Every weight and moment of the last checkpoint."""
    checkpoint = newest_checkpoint(str(run.path))
    reader = checkpoint.reader()
    return {
        f"{name} {role}": reader.read(name, role, 0, int(np.prod(shape))).numpy()
        for name, shape in checkpoint.meta["parameters"].items()
        for role in ("master", "exp_avg", "exp_avg_sq")
    }


def compare(whole: Run, broken: Run) -> dict[str, Any]:
    """The verdict."""
    manifest = open_manifest(str(whole.data), {})
    keys = [key for number in range(len(manifest.shards)) for key in train_names(manifest, number)]
    lost, repeated = lost_and_repeated(delivered(str(broken.path)), keys)
    expected, got = final_state(whole), final_state(broken)
    uri = f"sqlite:///{whole.folder}/mlflow.db"
    ids = [json.loads((run.path / "result.json").read_text())["run_id"] for run in (whole, broken)]
    curves = [[metric_history(uri, run_id, name) for name in ("train/loss", "val/loss")] for run_id in ids]
    steps = [step for step, _ in curves[1][0]]
    recoveries = {kind: [k.recovery_s for k in broken.kills if k.victim == kind] for kind in VICTIMS}
    within = recoveries["worker"] + recoveries["workers"]
    return {
        "kills": len(broken.kills),
        "lost": lost,
        "repeated": repeated,
        "bit_equal": expected.keys() == got.keys() and all(np.array_equal(expected[n], got[n]) for n in expected),
        "curve_equal": curves[0] == curves[1] and steps == list(range(1, len(steps) + 1)),
        "status": run_status(uri, ids[1]),
        "recovery_s": round(statistics.median(within), 2) if within else None,
        "driver_recovery_s": round(statistics.median(recoveries["driver"]), 2) if recoveries["driver"] else None,
        "phases_s": median_phases(broken.starts()),
        "moments": {m: sum(k.moment == m for k in broken.kills) for m in ("step", "checkpoint", "evaluation")},
        "victims": {kind: len(values) for kind, values in recoveries.items()},
    }


def median_phases(starts: list[dict[str, float]]) -> dict[str, float]:
    """The median of each phase; the time until the failure was noticed is what is missing to `recovery_s`."""
    phases = [name for name in starts[0] if name != "attempt"] if starts else []
    return {name.removesuffix("_s"): round(statistics.median(s[name] for s in starts), 2) for name in phases}


def train_names(manifest: Any, number: int) -> list[str]:
    """The training samples in one shard."""
    return read_index(manifest, number).names(manifest.column("default", "train"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS), help="who may be killed")
    parser.add_argument("--data", choices=DATA, default="digits", help="what is trained on")
    parser.add_argument("--quick", action="store_true", help="three kills")
    parser.add_argument(
        "--patience", type=float, default=PATIENCE_S, help="seconds to wait for a step (busy machine: more)"
    )
    parser.add_argument("--folder", type=absolute_path, help="keep everything here instead of a temporary folder")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    kills = 3 if arguments.quick else arguments.kills
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="survive_"))
    folder.mkdir(parents=True, exist_ok=True)
    for number, source in enumerate(DATA[arguments.data]()):
        pack(source, str(folder / "data"), overwrite=not number, append=bool(number))
    epochs = 2 + -(-kills * 9 // STEPS_PER_EPOCH)
    whole, broken = (Run(folder, folder / "data", name, epochs, arguments.patience) for name in ("whole", "broken"))
    logger.info("undisturbed run of %d epochs", epochs)
    whole.start()
    whole.wait()
    rng = random.Random(arguments.seed)
    broken.start()
    while len(broken.kills) < kills and kill_once(broken, rng, arguments.victims):
        pass
    logger.info("no more kills; the run goes to its end")
    broken.wait()
    for process in broken.orphans:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    print(json.dumps(compare(whole, broken)))


if __name__ == "__main__":
    main()
