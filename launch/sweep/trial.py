"""One trial of a sweep: an ordinary run in a process of its own, watched through the metrics that it writes.

A trial of one worker is `python -m trainer`, on the CPUs and the GPU that Ray set aside for it; a trial of several
workers is `python -m launch train`, whose workers Ray places. Either is the run that one would start by hand, with the
checkpoints, the MLflow run and the continuation of one: a trial that is started again goes on where it ended.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from data_shards.lease.record import Parent
from data_shards.lease.watch import Follower
from data_shards.yaml_file import to_yaml
from launch.versions import ROOT
from trainer.config.run_config import RunConfig
from trainer.run_folder import FAILED, PRUNED, metric_lines, read_json, remove, stored_result, write_json

POLL_SECONDS = 0.5
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # looked up before a process forks, not in between


class TrialError(RuntimeError):
    """A trial ended without a result. The text is its own sentence."""


def evaluations(config: RunConfig, metric: str) -> dict[int, float]:
    """Step -> value of a validation metric, as far as the run has written it."""
    rows = metric_lines(config.run_dir)
    found = {int(row["step"]): float(row["metrics"][metric]) for row in rows if metric in row.get("metrics", {})}
    return dict(sorted(found.items()))


def was_pruned(config: RunConfig) -> bool:
    """Whether an earlier go of the sweep has stopped this trial for good."""
    return read_json(config.run_dir, PRUNED) is not None


def mark_pruned(config: RunConfig, evaluation: int) -> None:
    """Remember it, so that a sweep that is started again does not continue the trial."""
    write_json(config.run_dir, PRUNED, {"evaluations": evaluation})


def failure_of(config: RunConfig) -> str | None:
    """Why its last go failed."""
    stored = read_json(config.run_dir, FAILED)
    return None if stored is None else str(stored["error"])


def run_trial(config: RunConfig, metric: str, address: str, under: Parent) -> Iterator[tuple[int, float]]:
    """Start or continue the run and yield (step, value) of each evaluation, earlier ones first, while it goes on.

    `under` is the sweep's lease. Raises TrialError if it fails.
    """
    done = 0
    if stored_result(config.run_dir) is None and not was_pruned(config):
        with tempfile.TemporaryDirectory(prefix="trial_") as folder:
            Follower(under, 0.0).confirm()
            remove(config.run_dir, FAILED)
            process = _start(config, Path(folder), address, under)
            while process.poll() is None:
                for step, value in list(evaluations(config, metric).items())[done:]:
                    done += 1
                    yield step, value
                time.sleep(POLL_SECONDS)
            if process.returncode != 0:
                text = _last_words(Path(folder) / "log", process.returncode)
                # Not if the sweep is another process's by now: the trial goes on there.
                Follower(under, 0.0).confirm()
                write_json(config.run_dir, FAILED, {"error": text})
                raise TrialError(text)
    # What came between the last look and the end; all of it if the run had ended before.
    yield from list(evaluations(config, metric).items())[done:]


def _start(config: RunConfig, folder: Path, address: str, under: Parent) -> subprocess.Popen[bytes]:
    recipe = folder / f"{config.name}.yaml"
    recipe.write_text(to_yaml(config.model_dump(mode="json", exclude={"evaluation"})))
    if config.parallel.workers == 1:
        command = [sys.executable, "-m", "trainer", str(recipe)]
    else:
        command = [sys.executable, "-m", "launch", "train", str(recipe), f"cluster.address={address}"]
    command += ["--under", under.to_json()]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(config.parallel.threads_per_worker)},
            stdout=subprocess.DEVNULL,
            stderr=log,
            preexec_fn=_end_with_parent,
        )


def _end_with_parent() -> None:
    """In the child: be killed when the trial's own process ends, however it ends. What it had saved is continued."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _last_words(log: Path, code: int) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"the run ended with code {code} and said nothing"
