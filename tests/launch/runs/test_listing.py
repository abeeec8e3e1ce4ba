"""`runs`: what there is, from folders whose files are written here, and whose processes live or do not."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from data_shards.lease.lease import take
from launch.runs.listing import age_words, list_runs, show_runs
from trainer.tracking.history import TrackedRun, UnknownRunError


def made(storage: Path, name: str, started: float, status: str | None = None, result: dict | None = None) -> Path:
    folder = storage / name
    folder.mkdir(parents=True)
    lines: list[dict] = [
        {"time": started, "params": {}},
        {"time": started + 5, "step": 3, "metrics": {"val/loss": 0.5}},
    ]
    lines += [{"time": started + 6, "status": status}] if status else []
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.json").write_text(json.dumps({"data": {"url": f"/data/{name}"}}))
    if result:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def storage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    runs = tmp_path / "runs"
    done = {"status": "finished", "metrics": {"test/auprc": 0.4, "test/auroc": 0.75}, "run_id": "a" * 32}
    made(runs, "done", 1000.0, "FINISHED", done)
    made(runs, "halted", 2000.0, "KILLED", {"status": "stopped", "metrics": {}})
    made(runs, "broken", 3000.0, "FAILED")
    made(runs, "gone", 4000.0)
    (made(runs, "large", 5000.0, "FINISHED") / "blob").write_bytes(b"x" * 3 * 2**20)
    (runs / "notes").mkdir()
    return runs


def test_runs_in_folders(storage):
    found = list_runs(str(storage))
    assert [(r.name, r.state, r.data) for r in found] == [
        ("large", "finished", "/data/large"),
        ("gone", "died", "/data/gone"),
        ("broken", "failed", "/data/broken"),
        ("halted", "stopped", "/data/halted"),
        ("done", "finished", "/data/done"),
    ]
    assert (found[4].metric, found[4].value, found[4].id) == ("test/auroc", 0.75, "a" * 32)
    assert (found[2].metric, found[2].value) == ("val/loss", 0.5)
    assert found[0].bytes is not None and 3 * 2**20 < found[0].bytes < 3 * 2**20 + 10_000
    assert list_runs(str(storage / "nothing")) == []


def test_a_run_whose_process_lives_is_running_and_one_whose_process_is_gone_has_died(storage):
    with take(str(storage / "gone"), "run gone", "wait"):
        assert next(r for r in list_runs(str(storage)) if r.name == "gone").state == "running"
    code = (
        "import os, sys; from data_shards.lease.lease import take; take(sys.argv[1], 'run broken', 'wait'); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(storage / "broken")], check=True, cwd=Path(__file__).parents[3])
    assert next(r for r in list_runs(str(storage)) if r.name == "broken").state == "died"


def test_runs_that_only_mlflow_knows_are_listed_once(storage, monkeypatch):
    from launch.runs import listing

    def all_runs(uri):
        assert uri == "http://host:5000"
        params = {"data.url": "s3://b/icu"}
        return [
            TrackedRun(uri, "b" * 32, "far", "RUNNING", 9_000_000, params, {"val/accuracy": 0.5}, {}),
            TrackedRun(uri, "a" * 32, "done", "FINISHED", 1_000_000, params, {}, {}),
        ]

    monkeypatch.setattr(listing, "all_runs", all_runs)
    found = list_runs(str(storage), "http://host:5000")
    assert [run.name for run in found] == ["far", "large", "gone", "broken", "halted", "done"]
    far = found[0]
    assert (far.state, far.data, far.metric, far.bytes, far.place) == (
        "running",
        "s3://b/icu",
        "val/accuracy",
        None,
        "",
    )


def test_a_table_and_a_line(storage, capsys, caplog):
    show_runs(str(storage), None)
    out, err = capsys.readouterr()
    assert [run["name"] for run in json.loads(out)["runs"]] == ["large", "gone", "broken", "halted", "done"]
    assert "auroc 0.7500" in err and "3.0 MiB" in err and "died" in err
    with pytest.raises(UnknownRunError, match="there is no MLflow database"):
        list_runs(str(storage), f"sqlite:///{storage}/nothing.db")
    (storage.parent / "mlflow.db").write_text("no database")
    with caplog.at_level(logging.WARNING):
        logging.getLogger("launch").propagate = True
        assert len(list_runs(str(storage))) == 5
    assert "only folders are listed" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "words"), [(5, "5 s"), (61, "1 min"), (7300, "2 h"), (90_000, "1 d"), (8_640_000, "100 d")]
)
def test_ages(seconds, words):
    assert age_words(1000.0, 1000.0 + seconds) == words
