"""`predict` as a user runs it: one process or several, the same file; nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from launch.errors import UsageError
from launch.runs.predict import write_whole
from tests.launch.commands import ROOT, SMALL, environment, last_json, python


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    rows = pa.table({"record": [1, 2]})
    assert write_whole(iter([(rows, {}), (rows, {"checksum": 1})]), str(tmp_path / "a.parquet")) == (4, {"checksum": 1})

    def failing():  # type: ignore[no-untyped-def]
        yield rows, {}
        assert not (tmp_path / "b.parquet").exists()
        raise RuntimeError("a worker died")

    with pytest.raises(RuntimeError, match="a worker died"):
        write_whole(failing(), str(tmp_path / "b.parquet"))
    with pytest.raises(UsageError, match="no record"):
        write_whole(iter([]), str(tmp_path / "c.parquet"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a data set of several stretches and a run."""
    folder = tmp_path_factory.mktemp("predict")
    options = ["-o", "records=3000", "-o", "modalities=series:1,vector:1", "--workers", "1"]
    last_json(python("-m", "launch", "pack", "synthetic", "--out", str(folder / "data"), *options))
    run = [f"data.url={folder}/data", f"training.storage={folder}/runs", "name=r", "parallel.expert_parallel=1"]
    stop = ["training.max_steps=3", "tracking.mlflow=false"]
    last_json(python("-m", "trainer", "synthetic_small", *SMALL, *run, *stop))
    return folder


@pytest.mark.ray
@pytest.mark.long
def test_workers_over_ray_write_the_same_file_also_when_one_dies(place):
    run = str(place / "runs" / "r")
    alone = last_json(python("-m", "launch", "predict", run, "--out", str(place / "one.parquet"), "--explain"))
    assert alone["records"] == 3000 and alone["skipped"] == {}
    again = python("-m", "launch", "predict", run, "--out", str(place / "one.parquet"))
    assert again.returncode == 2 and "exists: give another name, or --overwrite" in again.stderr
    command = [sys.executable, "-m", "launch", "predict", run, "--out", str(place / "two.parquet"), "--explain"]
    driver = subprocess.Popen(
        [*command, "parallel.workers=2"], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    os.kill(a_worker_below(driver.pid), signal.SIGKILL)
    _, stderr = driver.communicate(timeout=240)
    assert driver.returncode == 0, stderr.decode()
    one, two = (pyarrow.parquet.read_table(place / f"{name}.parquet") for name in ("one", "two"))
    assert two.equals(one) and one["record"].to_pylist() == list(range(3000))
    assert not list(place.glob(".*.tmp"))


def a_worker_below(pid: int) -> int:
    """Wait for a Ray actor that predicts; its process id."""
    import psutil

    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        for process in psutil.process_iter(["pid", "cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            if line.startswith("ray::PredictWorker") and pid in [parent.pid for parent in process.parents()]:
                return int(process.info["pid"])
        time.sleep(0.2)
    raise AssertionError("no worker appeared")
