"""A run or an experiment that somebody deleted: said as what it is, with what helps, and nothing is lost meanwhile.

Against a database and against a real server.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.trainer.tracking.curves import points, written
from trainer.tracking.history import UnknownRunError, find_runs
from trainer.tracking.mlflow_run import add_to_run, close_run
from trainer.tracking.spool import Spool


def train(make_tracker, config, steps, **changes):
    tracker = make_tracker(config, **changes)
    for step in steps:
        tracker.log_metrics({"train/loss": 1 / step}, step)
    tracker.finish("FINISHED")
    return tracker


def delete(client, run_id, what):
    if what == "run":
        client.delete_run(run_id)
        return lambda: client.restore_run(run_id), f"mlflow runs restore --run-id {run_id}"
    experiment = client.get_run(run_id).info.experiment_id
    client.delete_experiment(experiment)
    return (
        lambda: client.restore_experiment(experiment),
        f"mlflow experiments restore --experiment-id {experiment}",
    )


def said(caplog, words):
    return [message for message in caplog.messages if words in message]


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_a_run_that_goes_on_after_it_was_deleted(store, make_tracker, tmp_path, caplog, what):
    first = train(make_tracker, store, (1, 2))
    client = MlflowClient(store.uri)
    restore, command = delete(client, first.run_id, what)
    with caplog.at_level(logging.WARNING):
        second = train(make_tracker, store, (3, 4))
    # Once when it is found, once at the end, and never as something that cannot be reached.
    assert len(said(caplog, "training goes on")) == 1 and len(said(caplog, "has not everything of this run")) == 1
    assert all("was deleted" in message and command in message for message in caplog.messages), caplog.messages
    assert not said(caplog, "cannot be reached")
    assert second.delivery.startswith(f"waiting in {store.spool} (MLflow {what} ") and command in second.delivery
    assert [(op["op"], op.get("step")) for op in Spool(Path(store.spool)).read()] == [
        ("metrics", 3),
        ("metrics", 4),
        ("status", None),
    ]
    everything = [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4)]
    assert written(tmp_path / "runs" / "r")["train/loss"] == everything
    assert points(client, first.run_id, "train/loss") == everything[:2]

    restore()
    third = train(make_tracker, store, (5,))
    assert third.run_id == first.run_id and third.delivery == "complete" and not Path(store.spool).exists()
    assert points(client, first.run_id, "train/loss") == [*everything, (5, 1 / 5)]
    assert client.get_run(first.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("what", ["run", "experiment"])
@pytest.mark.parametrize("restored", [False, True])
def test_a_run_that_is_deleted_while_it_trains(store, make_tracker, tmp_path, caplog, what, restored):
    client = MlflowClient(store.uri)
    tracker = make_tracker(store)
    tracker.log_metrics({"train/loss": 1.0}, 1)
    tracker.flush()
    restore, command = delete(client, tracker.run_id, what)
    with caplog.at_level(logging.WARNING):
        for step in (2, 3):  # several flushes, one message
            tracker.log_metrics({"train/loss": 1 / step}, step)
            tracker.log_text(f"note{step}.txt", "hello")
            tracker.set_tags({"phase": str(step)})
            tracker.flush()
        assert len(caplog.messages) == 1 and "was deleted" in caplog.messages[0] and command in caplog.messages[0]
        if restored:
            restore()
        tracker.finish("FINISHED")
    everything = [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    assert written(tmp_path / "runs" / "r")["train/loss"] == everything
    if restored:  # it is tried once more at the end
        assert tracker.delivery == "complete" and points(client, tracker.run_id, "train/loss") == everything
        run = client.get_run(tracker.run_id)
        assert run.data.tags["phase"] == "3" and run.info.status == "FINISHED"
        assert {item.path for item in client.list_artifacts(tracker.run_id)} == {"note2.txt", "note3.txt"}
        return
    assert command in tracker.delivery and "waiting in" in tracker.delivery
    assert points(client, tracker.run_id, "train/loss") == everything[:1]
    restore()
    train(make_tracker, store, (4,))
    assert points(client, tracker.run_id, "train/loss") == [*everything, (4, 1 / 4)]


def test_another_experiment_is_a_way_out(store, make_tracker, caplog):
    first = train(make_tracker, store, (1,))
    client = MlflowClient(store.uri)
    delete(client, first.run_id, "experiment")
    train(make_tracker, store, (2,))  # waits
    elsewhere = store.model_copy(update={"experiment": f"{store.experiment}-2"})
    second = train(make_tracker, elsewhere, (3,))
    assert second.run_id != first.run_id and second.delivery == "complete"
    assert said(caplog, f"a new one is made in experiment {elsewhere.experiment}")
    assert points(client, second.run_id, "train/loss") == [(2, 1 / 2), (3, 1 / 3)]
    assert train(make_tracker, elsewhere, (4,)).run_id == second.run_id


def test_a_new_run_in_a_deleted_experiment(store, make_tracker, caplog):
    first = train(make_tracker, store, (1,))
    client = MlflowClient(store.uri)
    restore, command = delete(client, first.run_id, "experiment")
    other = train(make_tracker, store, (1,), name="other", run_dir=f"{Path(store.spool).parent}/runs/other")
    assert other.run_id is None and command in other.delivery
    assert not said(caplog, "cannot be reached")
    restore()
    again = train(make_tracker, store, (2,), name="other", run_dir=f"{Path(store.spool).parent}/runs/other")
    assert points(client, again.run_id, "train/loss") == [(1, 1.0), (2, 1 / 2)] and again.delivery == "complete"


def test_a_run_goes_on_where_it_was_made_whatever_the_experiment_is_now(store, make_tracker, caplog):
    first = train(make_tracker, store, (1,))
    moved = store.model_copy(update={"experiment": f"{store.experiment}-2"})
    with caplog.at_level(logging.WARNING):
        assert train(make_tracker, moved, (2,)).run_id == first.run_id
    assert said(caplog, f"goes on in experiment {store.experiment}, where it was made")


def test_a_run_that_is_gone_for_good_while_it_trains(config, make_tracker, caplog):
    """`mlflow gc` takes the row away: nobody can restore it, and the next start makes a new run."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    tracker = make_tracker(config)
    tracker.log_metrics({"train/loss": 1.0}, 1)
    tracker.flush()
    MlflowClient(config.uri).delete_run(tracker.run_id)
    SqlAlchemyStore(config.uri, "unused")._hard_delete_run(tracker.run_id)
    tracker.log_metrics({"train/loss": 0.5}, 2)
    tracker.flush()
    assert said(caplog, f"MLflow run {tracker.run_id} is no longer at")
    tracker.finish("FINISHED")
    # Asked once more at the end, it made the new run by itself.
    assert tracker.delivery == "complete"
    assert points(MlflowClient(config.uri), tracker.run_id, "train/loss") == [(2, 0.5)]


def test_what_is_done_to_a_deleted_run_from_outside_says_so(store, make_tracker, caplog):
    tracker = train(make_tracker, store, (1,))
    _, command = delete(MlflowClient(store.uri), tracker.run_id, "run")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        close_run(store, tracker.run_id, "KILLED")
        add_to_run(store, tracker.run_id, {1: {"x": 1.0}})
    assert len(caplog.messages) == 2 and all(command in message for message in caplog.messages)


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_deleted_runs_are_not_compared_in_silence(store, make_tracker, tmp_path, caplog, what):
    folder = str(tmp_path / "runs" / f"lost-{tmp_path.name}")
    kept = train(make_tracker, store, (1,), name="kept")
    name = f"lost-{tmp_path.name}"
    lost = train(make_tracker, store, (1,), name=name)
    client = MlflowClient(store.uri)
    assert find_runs(store.uri, [name], None)[0].id == lost.run_id
    _, command = delete(client, lost.run_id, what)
    for word in (folder, lost.run_id, name):
        with pytest.raises(UnknownRunError, match="was deleted at") as error:
            find_runs(store.uri, [word], None)
        assert command in str(error.value)
    caplog.clear()
    if what == "run":
        assert [run.id for run in find_runs(store.uri, [], store.experiment)] == [kept.run_id]
        assert said(caplog, f"1 runs of experiment {store.experiment} were deleted in MLflow and are left out: {name}")
        return
    with pytest.raises(UnknownRunError, match="was deleted at") as error:
        find_runs(store.uri, [], store.experiment)
    assert command in str(error.value)


def test_looking_for_a_run_makes_no_database(tmp_path):
    uri = f"sqlite:///{tmp_path}/typo.db"
    with pytest.raises(UnknownRunError, match=r"there is no MLflow database .*typo\.db"):
        find_runs(uri, ["r"], None)
    with pytest.raises(UnknownRunError, match=r"there is no MLflow database"):
        find_runs(uri, [], "e")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_run_never_reached_mlflow_says_why(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "result.json").write_text(json.dumps({"status": "finished", "mlflow": "waiting in /s (no)"}))
    with pytest.raises(UnknownRunError, match=r"is not in MLflow \(waiting in /s \(no\)\)"):
        find_runs(None, [str(tmp_path)], None)
