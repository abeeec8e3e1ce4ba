"""Two processes and one run: refused, followed when dead, and nothing from one that was frozen and comes back late."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests import object_store
from tests.frozen import freeze, snapshot, wake
from tests.trainer.tiny import config, packed
from trainer.checkpoints.find import committed_paths
from trainer.checkpoints.listing import list_checkpoints
from trainer.run_folder import metric_lines, stored_result

ROOT = Path(__file__).resolve().parents[3]
ENDLESS = 1_000_000


@pytest.fixture(params=["files", pytest.param("s3", marks=pytest.mark.long)])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with object_store.storage(request.param, tmp_path, monkeypatch) as url:
        yield f"{url}/runs"


def start(folder: Path, storage: str, steps: int, lease_s: float) -> subprocess.Popen[str]:
    """`python -m trainer`, with a checkpoint every few steps."""
    changes = {"every": 5, "keep_last": 2}
    tree = config(
        str(folder / "data"),
        Path(),
        training__storage=storage,
        training__lease_s=lease_s,
        training__max_steps=steps,
        training__epochs=ENDLESS,
        training__eval_every=ENDLESS,
        training__checkpoint=changes,
        optim__schedule="constant",
    ).model_dump(mode="json", exclude={"evaluation"})
    recipe = folder / f"{steps}-{lease_s}.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    words = [sys.executable, "-m", "trainer", str(recipe)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def reaches(process: subprocess.Popen[str], run: str, step: int) -> None:
    """Return when a checkpoint of this step or a later one is there."""
    deadline = time.monotonic() + 120
    while not any(int(path.rsplit("-", 1)[1]) >= step for path in committed_paths(run)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def steps_logged(run: str) -> Counter[int]:
    return Counter(line["step"] for line in metric_lines(run) if "train/loss" in line.get("metrics", {}))


@pytest.mark.long
def test_two_processes_and_one_run(storage: str, tmp_path: Path) -> None:
    packed(tmp_path / "data")
    run = f"{storage}/run"
    first = start(tmp_path, storage, ENDLESS, lease_s=1000)
    reaches(first, run, 5)
    freeze(first)
    before = snapshot(run)
    second = start(tmp_path, storage, 20, lease_s=1000)
    _, said = second.communicate()
    assert second.returncode == 2 and said.count("\n") == 1
    assert said.startswith(f"error: run run at {run} belongs to ") and f"(pid {first.pid}), at work since 20" in said
    assert "give this run another name=, stop that process, or wait until it has ended" in said
    assert snapshot(run) == before, "nothing was written"
    wake(first)
    reaches(first, run, max(steps_logged(run)) + 10)
    first.kill()
    first.communicate()

    third = start(tmp_path, storage, ENDLESS, lease_s=2)
    reaches(third, run, max(steps_logged(run)) + 10)  # at once: the lease of the dead one had 1000 s to go
    freeze(third)
    time_of_freezing, last = time.monotonic(), max(steps_logged(run)) + 20
    while True:
        fourth = start(tmp_path, storage, last, lease_s=60)
        out, said = fourth.communicate()
        if fourth.returncode != 2:
            break
        assert "belongs to" in said and time.monotonic() < time_of_freezing + 60, said
    assert fourth.returncode == 0, said
    after = snapshot(run)
    wake(third)
    _, said = third.communicate()
    assert third.returncode == 1 and "it writes nothing more there" in said, said
    assert snapshot(run) == after, "the late one has committed nothing"

    result = stored_result(run)
    assert result is not None and result == json.loads(out) and result["step"] == last
    assert steps_logged(run) == dict.fromkeys(range(1, last + 1), 1), "every step stands once"
    kept = list_checkpoints(run, verify=True)
    assert [entry.step for entry in kept] == [last - (last % 5 or 5), last] and not any(e.problem for e in kept)
    assert not any("/lease/" in name for name in after)
