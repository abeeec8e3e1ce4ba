"""Tracking against a real MLflow on SQLite: what arrives, what survives a restart, what an outage does."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import fsspec
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient

from data_shards.errors import LeaseDoubtError, LeaseLostError
from tests.ports import free_port
from trainer.run_folder import metric_lines
from trainer.tracking.create import create_tracker
from trainer.tracking.failures import RefusedError, Remarks
from trainer.tracking.json_lines import JsonLinesSink
from trainer.tracking.mlflow_run import close_run, open_run
from trainer.tracking.queued import QueuedSink
from trainer.tracking.spool import Spool
from trainer.tracking.tracker import Tracker, flatten

pytestmark = pytest.mark.together


def tracker_of(config, tmp_path, **changes):
    arguments = {"run_name": "r", "run_id": None, "tags": {}, "rank": 0, "run_dir": str(tmp_path / "runs" / "r")}
    return create_tracker(config, **{**arguments, **changes})


def figure():
    drawing = Figure()
    drawing.subplots().plot([1, 2])
    return drawing


def steps(client, run_id, key):
    return [point.step for point in client.get_metric_history(run_id, key)]


def test_everything_that_is_logged_arrives(config, tmp_path):
    tracker = tracker_of(config, tmp_path, tags={"git.commit": "abc"})
    tracker.log_params({"optim": {"lr": 0.1, "betas": [0.9, 0.99]}, "long": "x" * 7000})
    for step in range(1200):  # more than one batch
        tracker.log_metrics({"train/loss": 1 / (step + 1)}, step)
    tracker.log_figure("figures/roc.png", figure())
    tracker.log_json("config.json", {"a": 1})
    tracker.log_text("note.txt", "hello")
    tracker.log_dataset("digits", "s3://bucket/digits", "f" * 64, "training")
    tracker.set_tags({"attempt": "1"})
    tracker.finish("FINISHED")

    client = MlflowClient(config.uri)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "r"
    assert run.data.params["optim.lr"] == "0.1" and run.data.params["optim.betas"] == "[0.9, 0.99]"
    assert len(run.data.params["long"]) == 6000
    assert steps(client, tracker.run_id, "train/loss") == list(range(1200))
    assert run.data.tags["git.commit"] == "abc" and run.data.tags["attempt"] == "1"
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", "f" * 36)
    assert "s3://bucket/digits" in dataset.dataset.source and dataset.tags[0].value == "training"
    assert {item.path for item in client.list_artifacts(tracker.run_id)} == {"figures", "config.json", "note.txt"}
    picture = Path(client.download_artifacts(tracker.run_id, "figures/roc.png", str(tmp_path)))
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert not Path(config.spool).exists()


def test_the_model_of_any_run_is_a_pointer_to_its_checkpoint(config, tmp_path):
    config = config.model_copy(update={"register_as": "wide"})
    for _ in range(2):  # the second time nothing is added
        tracker = tracker_of(config, tmp_path, run_name="lr-0.5_v1.2")
        tracker.log_model("runs/a/step-3", {"step": "3", "data.digest": "d"}, {"val/loss": 0.5})
        tracker.finish("FINISHED")
    client = MlflowClient(config.uri)
    (model,) = client.search_logged_models([client.get_run(tracker.run_id).info.experiment_id])
    assert model.params == {"uri": "runs/a/step-3", "step": "3", "data.digest": "d"}
    assert [metric.value for metric in model.metrics] == [0.5] and model.source_run_id == tracker.run_id
    (version,) = client.search_model_versions("name = 'wide'")
    assert version.source == "runs/a/step-3" and version.run_id == tracker.run_id


def test_a_restart_is_the_same_run_and_repeats_no_step(config, tmp_path):
    first = tracker_of(config, tmp_path)
    first.log_params({"lr": 1})
    for step in (1, 2, 3):
        first.log_metrics({"train/loss": float(step)}, step)
    first.finish("FAILED")
    second = tracker_of(config, tmp_path, tags={"attempt": "2"})
    second.log_params({"lr": 2, "new": 3})  # a parameter cannot change
    for step in (3, 4):  # step 3 is repeated after the checkpoint of step 2
        second.log_metrics({"train/loss": float(step)}, step)
    second.flush()
    client = MlflowClient(config.uri)
    assert second.run_id == first.run_id
    assert client.get_run(second.run_id).info.status == "RUNNING"
    second.finish("FINISHED")
    run = client.get_run(second.run_id)
    assert steps(client, second.run_id, "train/loss") == [1, 2, 3, 4]
    assert run.data.params == {"lr": "1", "new": "3"} and run.data.tags["changed.lr"] == "2"
    assert run.data.tags["attempt"] == "2" and run.info.status == "FINISHED"


def test_a_parameter_that_was_changed_and_changed_back_is_told_by_its_last_value(config, tmp_path):
    last = []
    for value in (1, 2, 1, 1):
        tracker = tracker_of(config, tmp_path)
        tracker.log_params({"lr": value, "dim": 8})
        tracker.finish("FINISHED")
        data = MlflowClient(config.uri).get_run(tracker.run_id).data
        assert data.params == {"lr": "1", "dim": "8"} and "changed.dim" not in data.tags
        last.append(data.tags.get("changed.lr"))
    assert last == [None, "2", "1", "1"]


def test_the_driver_makes_the_run_and_has_the_last_word(config, tmp_path):
    run_dir = str(tmp_path / "runs" / "r")
    run_id = open_run(config, "r", {"ray.submission_id": "job"}, run_dir)
    tracker = tracker_of(config, tmp_path, run_id=run_id)
    tracker.log_metrics({"x": 1.0}, 1)
    tracker.flush()
    assert tracker.run_id == run_id == open_run(config, "r", {}, run_dir)
    close_run(config, run_id, "KILLED")
    assert MlflowClient(config.uri).get_run(run_id).info.status == "KILLED"


def test_a_run_that_the_store_does_not_know_is_made_anew(config, tmp_path, caplog):
    lost = config.model_copy(update={"run_id": "0" * 32})
    with caplog.at_level(logging.WARNING):
        run_id = open_run(lost, "r", {}, str(tmp_path / "run"))
    assert run_id not in (None, "0" * 32) and "no longer exists" in caplog.text
    elsewhere = json.loads((tmp_path / "run" / "mlflow_run.json").read_text()) | {"uri": "sqlite:////other.db"}
    (tmp_path / "run" / "mlflow_run.json").write_text(json.dumps(elsewhere))
    assert open_run(config, "r", {}, str(tmp_path / "run")) != run_id  # an id of another store means nothing here


class NeverDrawn(Figure):
    def savefig(self, *args, **kwargs):
        raise AssertionError("a figure was drawn that nobody keeps")


def test_only_rank_0_tracks_and_switches_are_obeyed(config, tmp_path):
    silent = config.model_copy(update={"mlflow": False, "json_lines": False})
    for tracker in (tracker_of(config, tmp_path, rank=1), tracker_of(silent, tmp_path)):
        tracker.log_metrics({"x": 1.0}, 1)
        tracker.log_figure("figures/roc.png", NeverDrawn())
        tracker.finish("FINISHED")
        assert tracker.run_id is None and not (tmp_path / "runs").exists()
    assert open_run(silent, "r", {}, str(tmp_path)) is None


def test_a_dead_server_stops_nothing_and_gets_everything_later(config, tmp_path, caplog):
    """Training against a port where nobody listens; the next process that continues the run replays to a live store."""
    dead = config.model_copy(update={"uri": f"http://127.0.0.1:{free_port()}", "json_lines": False})
    with caplog.at_level(logging.WARNING):
        assert open_run(dead, "r", {}, str(tmp_path / "runs" / "r")) is None
        tracker = tracker_of(dead, tmp_path)
        tracker.log_params({"lr": 1})
        tracker.log_metrics({"train/loss": 1.0}, 1)
        tracker.flush(timeout_s=60)
        tracker.log_metrics({"train/loss": 0.5}, 2)
        tracker.log_figure("figures/roc.png", figure())
        tracker.finish("FINISHED")
    assert sum("training goes on, the record waits in" in message for message in caplog.messages) == 1
    waiting = Spool(Path(config.spool)).read()
    assert [operation["op"] for operation in waiting] == ["params", "metrics", "metrics", "file", "status"]

    alive = tracker_of(config, tmp_path)
    alive.log_metrics({"train/loss": 0.25}, 3)
    alive.finish("FINISHED")
    client = MlflowClient(config.uri)
    run = client.get_run(alive.run_id)
    assert steps(client, alive.run_id, "train/loss") == [1, 2, 3]
    assert run.data.params == {"lr": "1"} and run.info.status == "FINISHED"
    assert client.list_artifacts(alive.run_id, "figures")[0].path == "figures/roc.png"
    assert not Path(config.spool).exists()


class FlakyStore:
    """A store that is away, or refuses an operation, when told to."""

    def __init__(self) -> None:
        self.run_id: str | None = None
        self.label = "the store"
        self.remarks = Remarks(self.label)
        self.away = False
        self.got: list[dict] = []

    def open(self) -> str:
        if self.away:
            raise ConnectionError("nobody there")
        self.run_id = "run"
        return self.run_id

    def apply(self, operations) -> None:
        if self.away:
            raise ConnectionError("nobody there")
        if any(operation["op"] == "tags" for operation in operations):
            raise RefusedError("no tags")
        self.got += operations


def values(store):
    return [next(iter(operation["values"].values())) for operation in store.got if operation["op"] == "metrics"]


def test_an_outage_in_the_middle_keeps_order_and_loses_nothing(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("trainer.tracking.queued.RETRY_SECONDS", 0.0)
    store, spool = FlakyStore(), Spool(tmp_path / "spool")
    tracker = Tracker(QueuedSink(store, spool, flush_seconds=60))
    with caplog.at_level(logging.WARNING):
        for step in range(9):
            store.away = step in (3, 4, 5)
            tracker.log_metrics({"x": float(step)}, step)
            tracker.flush()
            assert bool(spool) == store.away
        tracker.finish("FINISHED")
    assert values(store) == [float(step) for step in range(9)]
    assert store.got[-1]["op"] == "status"
    said = [message for message in caplog.messages if "the store" in message]
    assert len(said) == 2 and "cannot be reached" in said[0] and "is back" in said[1]


def test_a_store_that_is_back_at_the_end_gets_everything(tmp_path):
    store, spool = FlakyStore(), Spool(tmp_path / "spool")
    tracker = Tracker(QueuedSink(store, spool, flush_seconds=60))
    store.away = True
    tracker.log_metrics({"x": 1.0}, 1)
    tracker.flush()
    store.away = False
    tracker.finish("FINISHED")  # without waiting for the next retry
    assert [operation["op"] for operation in store.got] == ["metrics", "status"] and not spool


def test_what_the_store_refuses_is_reported_and_does_not_block_the_rest(tmp_path, caplog):
    store = FlakyStore()
    tracker = Tracker(QueuedSink(store, Spool(tmp_path / "spool"), flush_seconds=60))
    with caplog.at_level(logging.WARNING):
        tracker.set_tags({"a": "b"})
        tracker.log_metrics({"x": 1.0}, 1)
        tracker.finish("FINISHED")
    assert values(store) == [1.0] and any("tags refused: no tags" in message for message in caplog.messages)


def test_what_an_older_version_has_spooled_is_delivered(config, tmp_path):
    """Lines as they have always been written; a change of their keys would lose what waits on someone's disk."""
    lines = [
        '{"op": "params", "values": {"optim.lr": "0.1"}, "time": 1700000000000}',
        '{"op": "metrics", "values": {"train/loss": 1.5}, "step": 1, "time": 1700000000001}',
        '{"op": "metrics", "values": {"train/loss": 0.5}, "step": 2, "time": 1700000000002}',
        '{"op": "file", "path": "SPOOL/file-0a1b2c3d4e5f/roc.png", "folder": "figures", "time": 1700000000003}',
        '{"op": "file", "path": "SPOOL/file-1a1b2c3d4e5f/note.txt", "folder": null, "time": 1700000000004}',
        '{"op": "dataset", "name": "d", "url": "s3://b", "digest": "f", "context": "training", "time": 1700000000005}',
        '{"op": "model", "uri": "runs/a", "about": {"step": "3"}, "metrics": {"val/loss": 0.5}, "time": 1700000000006}',
        '{"op": "tags", "values": {"attempt": "1"}, "time": 1700000000007}',
        '{"op": "status", "status": "KILLED", "time": 1700000000008}',
    ]
    spool = Path(config.spool)
    for name in ("file-0a1b2c3d4e5f/roc.png", "file-1a1b2c3d4e5f/note.txt"):
        (spool / name).parent.mkdir(parents=True)
        (spool / name).write_text(name)
    (spool / "operations.jsonl").write_text("".join(f"{line}\n" for line in lines).replace("SPOOL", str(spool)))
    tracker = tracker_of(config, tmp_path)
    tracker.flush(timeout_s=60)

    client = MlflowClient(config.uri)
    run = client.get_run(tracker.run_id)
    assert run.data.params == {"optim.lr": "0.1"} and run.data.tags["attempt"] == "1"
    points = client.get_metric_history(tracker.run_id, "train/loss")
    assert [(p.step, p.value, p.timestamp) for p in points] == [(1, 1.5, 1700000000001), (2, 0.5, 1700000000002)]
    assert client.list_artifacts(tracker.run_id, "figures")[0].path == "figures/roc.png"
    note = Path(client.download_artifacts(tracker.run_id, "note.txt", str(tmp_path)))
    assert note.read_text() == "file-1a1b2c3d4e5f/note.txt"
    assert run.inputs.dataset_inputs[0].dataset.name == "d"
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert model.params == {"uri": "runs/a", "step": "3"}
    assert (run.info.status, run.info.end_time) == ("KILLED", 1700000000008)
    assert not spool.exists()
    tracker.finish("FINISHED")


def tell_everything(tracker, tmp_path):
    """One operation of each kind; a file that is gone right after it was logged."""
    tracker.log_params({"optim": {"lr": 0.1}, "none": None})
    tracker.log_metrics({"train/loss": 0.5, "train/samples": 64}, 2)
    file = tmp_path / "anything.bin"
    file.write_text("first")
    tracker.log_file("adapter/weights.bin", file)
    file.write_text("second")
    file.unlink()
    tracker.log_text("note.txt", "hello")
    tracker.log_dataset("digits", "s3://b/d", "f", "training")
    tracker.log_model("runs/a", {"step": "3"}, {"val/loss": 0.5})
    tracker.set_tags({"attempt": "1"})
    tracker.finish("FINISHED")


def test_operations_are_spooled_as_they_have_always_been(tmp_path):
    store, folder = FlakyStore(), tmp_path / "spool"
    store.away = True
    tell_everything(Tracker(QueuedSink(store, Spool(folder), flush_seconds=60)), tmp_path)
    waiting = Spool(folder).read()
    assert [Path(line["path"]).read_text() for line in waiting if line["op"] == "file"] == ["first", "hello"]
    told = [{**line, "path": Path(line["path"]).name} if "path" in line else line for line in waiting]
    assert all(list(line)[-1] == "time" and isinstance(line.pop("time"), int) for line in told)
    assert [json.dumps(line) for line in told] == [
        '{"op": "params", "values": {"optim.lr": "0.1", "none": "null"}}',
        '{"op": "metrics", "values": {"train/loss": 0.5, "train/samples": 64.0}, "step": 2}',
        '{"op": "file", "path": "weights.bin", "folder": "adapter"}',
        '{"op": "file", "path": "note.txt", "folder": null}',
        '{"op": "dataset", "name": "digits", "url": "s3://b/d", "digest": "f", "context": "training"}',
        '{"op": "model", "uri": "runs/a", "about": {"step": "3"}, "metrics": {"val/loss": 0.5}}',
        '{"op": "tags", "values": {"attempt": "1"}}',
        '{"op": "status", "status": "FINISHED"}',
    ]


def test_several_sinks_are_told_the_same_and_a_figure_is_drawn_once(tmp_path):
    class Counted(Figure):
        drawn = 0

        def savefig(self, *args, **kwargs):
            self.drawn += 1
            super().savefig(*args, **kwargs)

    store, drawing = FlakyStore(), Counted()
    queued = QueuedSink(store, Spool(tmp_path / "spool"), flush_seconds=60)
    tracker = Tracker(queued, JsonLinesSink(str(tmp_path / "run")))
    tracker.log_figure("figures/roc.png", drawing)
    tracker.flush()
    (operation,) = store.got
    assert drawing.drawn == 1 and (tmp_path / "run/figures/roc.png").read_bytes()[:4] == b"\x89PNG"
    assert Path(operation["path"]).read_bytes() == (tmp_path / "run/figures/roc.png").read_bytes()
    assert tracker.run_id == "run"
    tracker.finish("FINISHED")
    assert store.got[-1]["status"] == "FINISHED" and '"FINISHED"' in (tmp_path / "run/metrics.jsonl").read_text()


def test_a_spool_cut_short_by_a_crash_is_read_up_to_there(tmp_path):
    spool = Spool(tmp_path / "spool")
    spool.append([{"op": "metrics", "step": 1}, {"op": "metrics", "step": 2}])
    with (tmp_path / "spool" / "operations.jsonl").open("a") as file:
        file.write('{"op": "metr')
    assert [operation["step"] for operation in spool.read()] == [1, 2]


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_json_lines_continue_where_they_were(tmp_path, scheme):
    folder = f"{scheme}{tmp_path}/run"
    for step in (1, 2):
        tracker = Tracker(JsonLinesSink(folder))
        tracker.log_metrics({"train/loss": 0.5}, step)
        tracker.log_json("deep/config.json", {"a": 1})
        tracker.finish("FINISHED")
    fs, root = fsspec.url_to_fs(folder)
    lines = [json.loads(line) for line in fs.cat_file(f"{root}/metrics.jsonl").decode().splitlines()]
    assert [line["step"] for line in lines if "metrics" in line] == [1, 2]
    assert json.loads(fs.cat_file(f"{root}/deep/config.json")) == {"a": 1}


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_json_lines_are_written_as_they_have_always_been(tmp_path, scheme, monkeypatch):
    monkeypatch.setattr("trainer.tracking.tracker.time.time", lambda: 1700000000.25)
    folder = f"{scheme}{tmp_path}/run"
    tell_everything(Tracker(JsonLinesSink(folder)), tmp_path)
    fs, root = fsspec.url_to_fs(folder)
    assert fs.cat_file(f"{root}/adapter/weights.bin") == b"first" and fs.cat_file(f"{root}/note.txt") == b"hello"
    start = '{"time": 1700000000.25, '
    assert fs.cat_file(f"{root}/metrics.jsonl").decode().splitlines() == [
        start + '"params": {"optim.lr": "0.1", "none": "null"}}',
        start + '"step": 2, "metrics": {"train/loss": 0.5, "train/samples": 64}}',
        start + '"dataset": {"name": "digits", "url": "s3://b/d", "digest": "f", "context": "training"}}',
        start + '"model": {"uri": "runs/a", "step": "3", "metrics": {"val/loss": 0.5}}}',
        start + '"tags": {"attempt": "1"}}',
        start + '"status": "FINISHED"}',
    ]


def test_flatten_gives_equal_text_for_equal_values():
    nested = {"a": {"b": [1, 2], "c": None, "d": {}}, "e": True, "f": "text"}
    assert flatten(nested) == {"a.b": "[1, 2]", "a.c": "null", "a.d": "{}", "e": "true", "f": "text"}


class Guard:
    """Says of a name what it is told to say."""

    def __init__(self):
        self.error = None

    def check(self):
        if self.error is not None:
            raise self.error

    confirm = check


def test_a_late_process_records_nothing(config, tmp_path):
    """In doubt lines wait; once the run is another's they are dropped, and its status stays what that one says."""
    guard, client = Guard(), MlflowClient(config.uri)
    tracker = tracker_of(config, tmp_path, guard=guard)
    tracker.log_metrics({"train/loss": 1.0}, 1)
    tracker.flush()
    path, run_id = tmp_path / "runs" / "r" / "metrics.jsonl", tracker.run_id
    before = path.read_text()
    guard.error = LeaseDoubtError("nothing was heard")
    tracker.log_metrics({"train/loss": 0.9}, 2)
    tracker.flush()
    assert path.read_text() == before and steps(client, run_id, "train/loss") == [1]
    guard.error = None
    tracker.log_metrics({"train/loss": 0.8}, 3)
    tracker.flush()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert steps(client, run_id, "train/loss") == [1, 2, 3]
    after = path.read_text()
    guard.error = LeaseLostError("it belongs to another process by now")
    with pytest.raises(LeaseLostError):
        tracker.log_metrics({"train/loss": 0.7}, 4)
    tracker.finish("FAILED")
    assert path.read_text() == after and steps(client, run_id, "train/loss") == [1, 2, 3]
    assert client.get_run(run_id).info.status == "RUNNING"


@pytest.mark.parametrize("store", ["files", "memory"])
def test_steps_that_are_made_again_stand_once(store, tmp_path):
    folder = str(tmp_path / "run") if store == "files" else "memory://rewind/run"
    first = Tracker(JsonLinesSink(folder))
    first.log_params({"a": 1})
    for step in (1, 2, 3, 4):
        first.log_metrics({"train/loss": step}, step)
    first.flush()
    if store == "files":
        with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
            file.write('{"time": 1, "step": 5, "met')  # killed in the middle of a line
    second = Tracker(JsonLinesSink(folder))
    second.log_params({"a": 1})
    second.rewind(2)
    second.log_metrics({"train/loss": 30}, 3)
    second.finish("FINISHED")
    if store == "files":
        first.log_metrics({"train/loss": 40}, 5)  # late: into a file that has no name any more
    lines = list(metric_lines(folder))
    found = [(line["step"], line["metrics"]["train/loss"]) for line in lines if "metrics" in line]
    assert found == [(1, 1), (2, 2), (3, 30)]
    assert sum("params" in line for line in lines) == 2 and lines[-1]["status"] == "FINISHED"
