"""The start of a worker: what it may not import before its first step, and the account of where its time went."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

from tests.trainer.tiny import config, packed
from trainer.worker.start_clock import StartClock

# Each takes as long as torch itself, and none is of use before the first step.
LATE = ["mlflow", "matplotlib", "scipy", "sklearn", "sympy", "torch._dynamo", "torchmetrics"]

FIRST_STEP = """
import json, sys
from trainer.jobs.job import run
from trainer.config.run_config import RunConfig
from trainer.worker.context import SingleContext
from trainer.worker.start_clock import StartClock

def report(self, step):
    print(json.dumps({"step": step, "phases": self.phases, "modules": sorted(sys.modules)}), flush=True)
    raise SystemExit

StartClock.report = report
run(RunConfig.model_validate_json(sys.stdin.read()), SingleContext("cpu"))
"""


def test_nothing_superfluous_is_imported_before_the_first_step(tmp_path):
    tree = config(packed(tmp_path), tmp_path, parallel__workers=1, parallel__expert_parallel=1)
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", FIRST_STEP], input=tree.model_dump_json(), cwd=root, capture_output=True, text=True
    )
    lines = done.stdout.strip().splitlines()
    assert lines, done.stderr
    first = json.loads(lines[-1])
    assert first["step"] == 1 and {"torch", "deepspeed"} <= set(first["modules"])
    assert [name for name in LATE if name in first["modules"]] == []
    assert list(first["phases"]) == ["model", "restore", "first step"]


def test_phases_follow_each_other_without_a_gap_and_never_run_back(caplog):
    clock = StartClock(since=100.0, attempt=3)
    clock.mark("teardown", at=102.0)
    clock.mark("process", at=101.0)  # another host's clock is behind
    clock.mark("first step", at=102.5)
    with caplog.at_level(logging.INFO, "trainer.worker.start_clock"):
        metrics = clock.report(41)
    assert clock.phases == {"teardown": 2.0, "process": 0.0, "first step": 0.5}
    assert (metrics["lifecycle/start_s"], metrics["lifecycle/attempt"]) == (2.5, 3)
    assert metrics["lifecycle/first_step_s"] == 0.5
    assert caplog.messages == [
        "step 41 is the first of attempt 3, after 2.5 s: teardown 2.0, process 0.0, first step 0.5"
    ]
