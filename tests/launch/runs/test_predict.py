"""`predict` as a user runs it: one process or several, the same file; nothing half-written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest

from launch.errors import RunFailedError, UsageError
from launch.runs.prediction import parts as predict_parts
from launch.runs.prediction import predict as predicting
from launch.runs.prediction.predict import predict_into, write_whole
from launch.runs.requests import Asked, request_of
from tests.launch.commands import ROOT, SMALL, environment, last_json, python
from tests.object_store import local_s3


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


@pytest.fixture
def small_files(monkeypatch):
    """Three files for three thousand records."""
    monkeypatch.setattr(predicting, "PART_SAMPLES", 1000)


def test_a_folder_holds_the_rows_of_a_file_in_its_order(place, tmp_path, small_files):
    run = str(place / "runs" / "r")
    one = predict_into(run, None, str(tmp_path / "one.parquet"), explain=True)
    many = predict_into(run, None, f"{tmp_path}/many/", explain=True)
    alike = ("records", "skipped", "checkpoint", "workers")
    assert [one[key] for key in alike] == [many[key] for key in alike] and many["files"] == 3
    names = sorted(path.name for path in (tmp_path / "many").iterdir())
    assert names == ["_asked.json", "_predictions.json", *(f"part-{n:08d}.parquet" for n in range(3))]
    expected, found = (pyarrow.parquet.read_table(tmp_path / name) for name in ("one.parquet", "many"))
    assert found.equals(expected) and found["record"].to_pylist() == list(range(3000))
    with pytest.raises(UsageError, match="many/ exists: give another name, or --overwrite"):
        predict_into(run, None, f"{tmp_path}/many/", explain=True)
    predict_into(run, None, f"{tmp_path}/many/", part="test", overwrite=True)
    assert (
        pyarrow.parquet.read_table(tmp_path / "many").num_rows
        == predict_into(run, None, str(tmp_path / "test.parquet"), part="test")["records"]
    )


@pytest.mark.parametrize("where", ["here", "s3"])
def test_a_folder_goes_on_behind_what_is_complete(place, tmp_path, small_files, monkeypatch, where):
    run = str(place / "runs" / "r")
    with local_s3(monkeypatch) if where == "s3" else nullcontext(str(tmp_path)) as home:
        out, whole = f"{home}/said/", predicting.write_part
        written = []

        def fails_at_the_second(answers, part, url):
            if part.number == 1:
                raise RunFailedError("a worker died")
            written.append(part.number)
            return whole(answers, part, url)

        monkeypatch.setattr(predicting, "write_part", fails_at_the_second)
        with pytest.raises(RunFailedError, match="a worker died"):
            predict_into(run, None, out)
        fs, root = fsspec.url_to_fs(out)
        fs.invalidate_cache()
        left = sorted(path.rsplit("/", 1)[1] for path in fs.ls(root.rstrip("/"), detail=False))
        assert left == ["_asked.json", "part-00000000.parquet"]
        for other in ({"part": "test"}, {"explain": True}, {"overrides": ["training.eval_batch_size=3"]}):
            with pytest.raises(UsageError, match="holds part of other predictions"):
                predict_into(run, None, out, **other)
        fs.pipe_file(f"{root.rstrip('/')}/.part-00000001.parquet.17.tmp", b"half")
        monkeypatch.setattr(
            predicting,
            "write_part",
            lambda answers, part, url: written.append(part.number) or whole(answers, part, url),
        )
        done = predict_into(run, None, out)
        assert written == [0, 1, 2] and done["records"] == 3000
        fs.invalidate_cache()
        assert not [path for path in fs.ls(root.rstrip("/"), detail=False) if path.endswith(".tmp")]
        table = pyarrow.dataset.dataset(root.rstrip("/"), filesystem=fs, format="parquet").to_table()
    expected = tmp_path / "one.parquet"
    predict_into(run, None, str(expected))
    assert table.equals(pyarrow.parquet.read_table(expected))


def test_what_is_no_prediction_is_never_removed(place, tmp_path):
    run, mine = str(place / "runs" / "r"), tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"holds other files than predictions \(thesis\.txt\): give another name"):
            predict_into(run, None, f"{mine}/", overwrite=overwrite)
        with pytest.raises(UsageError, match=r"thesis\.txt is a file: give another name"):
            predict_into(run, None, f"{mine}/thesis.txt/", overwrite=overwrite)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    half = tmp_path / "half"  # killed while it began
    half.mkdir()
    (half / "_asked.json").write_text('{"ask')
    with pytest.raises(UsageError, match="holds part of other predictions"):
        predict_into(run, None, f"{half}/")
    assert predict_into(run, None, f"{half}/", overwrite=True)["records"] == 3000


def test_what_is_asked_does_not_depend_on_who_works_and_does_on_the_model(place, tmp_path):
    run = shutil.copytree(place / "runs" / "r", tmp_path / "r")

    def asked(**more):
        config, request = request_of(str(run), Asked(str(place / "data"), **more))
        return predict_parts.asked_of(request, config, 1000)

    same = {asked(), asked(overrides=("parallel.workers=4",)), asked(overrides=("cluster.max_failures=7",))}
    assert len(same) == 1
    assert len({*same, asked(part="test"), asked(explain=True), asked(overrides=("data.split=other",))}) == 4
    for commit in run.glob("checkpoints/*/COMMIT"):  # another model under the same name
        described = commit.with_name("checkpoint.json")
        described.write_text(described.read_text() + " ")
        commit.write_text(hashlib.sha256(described.read_bytes()).hexdigest())
    assert asked() not in same


@pytest.mark.ray
@pytest.mark.long
def test_workers_over_ray_write_the_same_folder_also_when_one_dies(place, tmp_path):
    run = str(place / "runs" / "r")
    command = [sys.executable, "-m", "launch", "predict", run, "--out", f"{tmp_path}/many/", "parallel.workers=2"]
    driver = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    os.kill(a_worker_below(driver.pid), signal.SIGKILL)
    stdout, stderr = driver.communicate(timeout=240)
    assert driver.returncode == 0, stderr
    assert json.loads(stdout.splitlines()[-1])["records"] == 3000 and "rows a second, about 0 s left" in stderr
    predict_into(run, None, str(tmp_path / "one.parquet"))
    one, many = (pyarrow.parquet.read_table(tmp_path / name) for name in ("one.parquet", "many"))
    assert many.equals(one)
