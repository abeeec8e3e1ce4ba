"""What MLflow refuses, cuts or changes: only that, counted and said; nothing that follows is held up.

Against a database and against a real server.
"""

from __future__ import annotations

import errno
import logging
import math
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.trainer.tracking.curves import points
from trainer.tracking.failures import ClosedError, RefusedError, Remarks, UncertainError
from trainer.tracking.queued import QueuedSink
from trainer.tracking.spool import Spool
from trainer.tracking.tracker import Tracker

STEPS = 700  # two keys: more than one batch of 1000 points


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("trainer.tracking.queued.PAUSES", (0.01, 0.01))


def test_a_metric_whose_name_is_refused_takes_no_other_with_it(store, make_tracker, caplog):
    tracker = make_tracker(store)
    with caplog.at_level(logging.WARNING):
        for step in range(STEPS):
            tracker.log_metrics({"train/loss": step / 7, "acc[0]": 0.5}, step)
        tracker.flush(60)
        tracker.log_metrics({"train/loss": 9.5, "acc[0]": 0.5, "x" * 251: 1.0}, STEPS)
        tracker.finish("FINISHED")
    client = MlflowClient(store.uri)
    assert points(client, tracker.run_id, "train/loss") == [*((step, step / 7) for step in range(STEPS)), (STEPS, 9.5)]
    assert set(client.get_run(tracker.run_id).data.metrics) == {"train/loss"}
    assert (
        "metric 'acc[0]' is refused: " in tracker.delivery and "exceeds the maximum length of 250" in tracker.delivery
    )
    assert len([message for message in caplog.messages if "'acc[0]'" in message]) == 2  # not one for each point
    assert client.get_run(tracker.run_id).info.status == "FINISHED" and not Path(store.spool).exists()


def test_values_that_mlflow_has_no_number_for(store, make_tracker):
    tracker = make_tracker(store)
    tracker.log_metrics({"nan": math.nan, "inf": math.inf, "ninf": -math.inf, "x": 0.5}, 1)
    tracker.log_metrics({"x": 0.25}, 2**63 - 1)
    tracker.log_metrics({"y": 0.25}, 2**63)
    tracker.log_metrics({"z": 0.75}, 3)
    tracker.finish("FINISHED")
    client = MlflowClient(store.uri)
    ((_, value),) = points(client, tracker.run_id, "nan")
    assert math.isnan(value)
    assert points(client, tracker.run_id, "inf") == [(1, 1.7976931348623157e308)]
    assert points(client, tracker.run_id, "ninf") == [(1, -1.7976931348623157e308)]
    assert points(client, tracker.run_id, "x") == [(1, 0.5), (2**63 - 1, 0.25)]
    assert points(client, tracker.run_id, "z") == [(3, 0.75)]
    assert points(client, tracker.run_id, "y") == []
    assert tracker.delivery == (
        "changed or left out: metric 'inf' is infinite, which MLflow shows as 1.797e+308; metric 'ninf' is infinite, "
        "which MLflow shows as 1.797e+308; metric 'y' is left out at step 9223372036854775808: MLflow's steps have 64 "
        "bits"
    )


def test_texts_that_are_too_long_are_cut_and_said(store, make_tracker):
    tracker = make_tracker(store)
    tracker.log_params({"long": "x" * 7000, "short": "a"})
    tracker.set_tags({"story": "y" * 9000, "title": "b"})
    tracker.finish("FINISHED")
    data = MlflowClient(store.uri).get_run(tracker.run_id).data
    assert data.params == {"long": "x" * 6000, "short": "a"}
    assert data.tags["story"] == "y" * 8000 and data.tags["title"] == "b"
    assert tracker.delivery == (
        "changed or left out: parameter 'long' is cut from 7000 to 6000 characters; tag 'story' is cut from 9000 to "
        "8000 characters"
    )
    again = make_tracker(store)  # a restart that logs the same long text has changed nothing
    again.log_params({"long": "x" * 7000})
    again.finish("FINISHED")
    assert "changed.long" not in MlflowClient(store.uri).get_run(tracker.run_id).data.tags


def test_a_refused_parameter_or_tag_takes_no_other_with_it(store, make_tracker):
    store = store.model_copy(update={"tags": {"my[tag]": "1", "team": "a"}})  # of the recipe
    tracker = make_tracker(store)
    tracker.log_params({"a": "1", "b[0]": "2", "c\ud800": "3", "d": "4\ud800", "e": "5"})
    tracker.set_tags({"f?": "6", "g": "7"})
    tracker.finish("FINISHED")
    data = MlflowClient(store.uri).get_run(tracker.run_id).data
    assert data.params == {"a": "1", "e": "5"}
    assert {key: value for key, value in data.tags.items() if not key.startswith("mlflow.")} == {"team": "a", "g": "7"}
    for words in ("tag 'my[tag]' is refused", "param 'b[0]' is refused", "param 'd' is refused", "tag 'f?' is refused"):
        assert words in tracker.delivery, tracker.delivery
    assert not Path(store.spool).exists()


def test_a_file_that_is_gone_holds_nothing_up(config, make_tracker):
    spool = Path(config.spool)
    spool.mkdir()
    (spool / "operations.jsonl").write_text(
        f'{{"op": "file", "path": "{spool}/file-0/x.png", "folder": null, "time": 1}}\n'
        '{"op": "metrics", "values": {"x": 0.5}, "step": 1, "time": 2}\n'
    )
    tracker = make_tracker(config)
    tracker.finish("FINISHED")
    assert points(MlflowClient(config.uri), tracker.run_id, "x") == [(1, 0.5)]
    assert tracker.delivery == "changed or left out: file refused: x.png is gone" and not spool.exists()


def test_artifacts_that_cannot_be_written_wait_and_hold_nothing_up(config, make_tracker, tmp_path):
    (tmp_path / "mlartifacts").write_text("in the way")  # a file where the artifacts' folder belongs
    tracker = make_tracker(config)
    tracker.log_text("note.txt", "hello")
    tracker.log_metrics({"x": 0.5}, 1)
    tracker.finish("FINISHED")
    client = MlflowClient(config.uri)
    assert (
        points(client, tracker.run_id, "x") == [(1, 0.5)] and client.get_run(tracker.run_id).info.status == "FINISHED"
    )
    assert tracker.delivery.startswith(f"waiting in {config.spool} (")
    assert [operation["op"] for operation in Spool(Path(config.spool)).read()] == ["file"]
    (tmp_path / "mlartifacts").unlink()
    again = make_tracker(config)
    again.finish("FINISHED")
    assert again.delivery == "complete"
    assert [item.path for item in client.list_artifacts(tracker.run_id)] == ["note.txt"]


class Poisoned:
    """A store that answers and fails at some operations, for reasons of its own."""

    def __init__(self) -> None:
        self.run_id, self.label = "run", "the store"
        self.remarks = Remarks(self.label)
        self.tries = 0
        self.got: list = []

    def open(self):
        return self.run_id

    def apply(self, operations):
        if operations[0]["op"] == "tags":
            self.tries += 1
            raise UncertainError("error 500")
        self.got += operations


def test_an_operation_that_fails_for_no_known_reason_is_tried_three_times_and_set_aside(tmp_path):
    store = Poisoned()
    tracker = Tracker(QueuedSink(store, Spool(tmp_path / "spool"), flush_seconds=60))
    tracker.set_tags({"a": "b"})
    tracker.log_metrics({"x": 1.0}, 1)
    tracker.finish("FINISHED")
    assert store.tries == 3 and [operation["op"] for operation in store.got] == ["metrics", "status"]
    assert tracker.delivery == "changed or left out: tags failed 3 times: error 500"


def test_one_bad_operation_in_a_stretch_takes_no_other_with_it_and_two_are_the_stores_trouble(tmp_path):
    class Picky(Poisoned):
        bad = frozenset({7})

        def apply(self, operations):
            if any(operation.get("step") in self.bad for operation in operations):
                raise UncertainError("error 500")
            self.got += operations

    store, spool = Picky(), Spool(tmp_path / "spool")
    tracker = Tracker(QueuedSink(store, spool, flush_seconds=60))
    for step in range(16):
        tracker.log_metrics({"x": float(step)}, step)
    tracker.finish("FINISHED")
    assert [operation.get("step") for operation in store.got] == [*(step for step in range(16) if step != 7), None]
    assert tracker.delivery == "changed or left out: metrics failed 3 times: error 500"

    store = Picky()
    store.bad = frozenset(range(3, 16))
    tracker = Tracker(QueuedSink(store, spool, flush_seconds=60))
    for step in range(16):
        tracker.log_metrics({"x": float(step)}, step)
    tracker.finish("FINISHED")
    assert {operation.get("step") for operation in spool.read()} >= {*range(4, 16), None}


def test_a_store_that_is_closed_is_not_asked_again_and_again(tmp_path, caplog):
    class Closed(Poisoned):
        def open(self):
            self.tries += 1
            raise ClosedError("it was deleted: restore it")

    store = Closed()
    tracker = Tracker(QueuedSink(store, Spool(tmp_path / "spool"), flush_seconds=0.01))
    for step in range(20):
        tracker.log_metrics({"x": float(step)}, step)
        tracker.flush()
    assert store.tries == 1 and len(caplog.messages) == 1
    tracker.finish("FINISHED")
    assert store.tries == 2 and len(caplog.messages) == 2  # once more at the end
    assert [operation.get("step") for operation in Spool(tmp_path / "spool").read()] == [*range(20), None]
    assert tracker.delivery == f"waiting in {tmp_path / 'spool'} (it was deleted: restore it)"


def test_a_spool_that_cannot_be_written_loses_nothing_while_the_run_lives(tmp_path, caplog, monkeypatch):
    store, spool = Poisoned(), Spool(tmp_path / "spool")
    away = {"now": True}

    def open_store():
        if away["now"]:
            raise ConnectionError("nobody there")
        return "run"

    def full(operations):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "open", open_store)
    monkeypatch.setattr(spool, "append", full)
    tracker = Tracker(QueuedSink(store, spool, flush_seconds=60))
    for step in (1, 2, 3):
        tracker.log_metrics({"x": float(step)}, step)
        tracker.flush()
    assert any("cannot be written (No space left on device)" in message for message in caplog.messages)
    away["now"] = False
    tracker.finish("FINISHED")
    assert [operation.get("step") for operation in store.got] == [1, 2, 3, None] and tracker.delivery == "complete"


def test_what_neither_the_store_nor_the_spool_takes_is_counted(tmp_path):
    (tmp_path / "spool").write_text("a file in the way")
    store = Poisoned()
    store.open = lambda: (_ for _ in ()).throw(ConnectionError("nobody there"))  # type: ignore[method-assign]
    tracker = Tracker(QueuedSink(store, Spool(tmp_path / "spool" / "deeper"), flush_seconds=60))
    tracker.log_metrics({"x": 1.0}, 1)
    tracker.finish("FAILED")
    assert tracker.delivery.startswith("2 entries are lost: ")


def test_a_line_cut_short_takes_no_later_one_with_it(tmp_path):
    """A process died while it wrote its last line; the next one appends to the same spool."""
    spool = Spool(tmp_path / "spool")
    spool.append([{"op": "tags", "values": {}, "time": 1}])
    with (tmp_path / "spool" / "operations.jsonl").open("a") as file:
        file.write('{"op": "metr')
    Spool(tmp_path / "spool").append([{"op": "tags", "values": {}, "time": 2}, {"op": "tags", "values": {}, "time": 3}])
    assert [operation["time"] for operation in spool.read()] == [1, 2, 3]


def test_steps_that_wait_and_are_repeated_after_a_restart_are_in_the_curve_once(config, make_tracker, tmp_path):
    """Steps 1-4 wait; the run goes on from the checkpoint of step 2 and repeats 3 and 4."""
    away = config.model_copy(update={"uri": "http://127.0.0.1:9"})
    first = make_tracker(away)
    for step in (1, 2, 3, 4):
        first.log_metrics({"x": float(step)}, step)
    first.finish("FAILED")
    second = make_tracker(config)
    for step in (3, 4, 5):
        second.log_metrics({"x": float(step)}, step)
    second.finish("FINISHED")
    assert points(MlflowClient(config.uri), second.run_id, "x") == [(step, float(step)) for step in (1, 2, 3, 4, 5)]


def test_refused_errors_are_the_stores_word():
    remarks = Remarks("the store")
    remarks.add("a")
    remarks.add("b", 2)
    remarks.add("a")
    assert str(remarks) == "a (2 times); b (2 times)" and issubclass(RefusedError, Exception)
