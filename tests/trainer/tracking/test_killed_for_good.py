"""A run that was killed for good: MLflow gets from the run's own lines what the run could not deliver."""

from __future__ import annotations

import logging
from pathlib import Path

from mlflow import MlflowClient

from tests.trainer.tracking.curves import points
from trainer.run_folder import stored_run_id
from trainer.tracking.create import create_tracker
from trainer.tracking.mlflow_run import deliver_lines
from trainer.tracking.tracker import Tracker


def written_lines(config, folder: str, steps: range) -> None:
    """What a run leaves at home that never reached MLflow."""
    tracker = create_tracker(config.model_copy(update={"mlflow": False}), "r", None, {}, 0, folder)
    tracker.log_params({"optim": {"lr": 0.5}})
    tracker.set_tags({"job_type": "train"})
    tracker.log_dataset("d", "file:///d", "f" * 64, "training")
    for step in steps:
        tracker.log_metrics({"train/loss": 1 / step, "bad": float("nan")}, step)
    tracker.finish("KILLED")


def test_a_run_that_mlflow_does_not_know_is_made(store, tmp_path: Path) -> None:
    folder = str(tmp_path / "runs" / "r")
    written_lines(store, folder, range(1, 4))
    with (tmp_path / "runs" / "r" / "metrics.jsonl").open("a") as lines:
        lines.write('{"time": 1.0, "step": 4, "metr')  # killed while it wrote
    own = store.model_copy(update={"tags": {"mlflow.parentRunId": "p", "sweep.variant": "v"}})
    deliver_lines(own, "r", folder, "KILLED")
    client, run_id = MlflowClient(store.uri), stored_run_id(folder, store.uri)
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("r", "KILLED")
    assert run.data.tags.items() >= {"mlflow.parentRunId": "p", "sweep.variant": "v", "job_type": "train"}.items()
    assert run.data.params == {"optim.lr": "0.5"}
    assert points(client, run_id, "train/loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    assert [one.dataset.name for one in run.inputs.dataset_inputs] == ["d"]


def test_what_has_arrived_is_not_sent_again(store, make_tracker, tmp_path: Path) -> None:
    tracker = make_tracker(store)
    tracker.log_metrics({"train/loss": 1.0}, 1)
    tracker.finish("FAILED")
    folder, client = str(tmp_path / "runs" / "r"), MlflowClient(store.uri)
    written_lines(store, folder, range(2, 4))
    for _ in range(2):
        deliver_lines(store, "r", folder, "KILLED")
        assert points(client, tracker.run_id, "train/loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
        assert client.get_run(tracker.run_id).info.status == "KILLED"
    assert len(client.search_runs([client.get_run(tracker.run_id).info.experiment_id])) == 1


def test_a_store_that_takes_nothing_is_a_warning(config, tmp_path: Path, caplog) -> None:
    folder = str(tmp_path / "runs" / "r")
    written_lines(config, folder, range(1, 2))
    Path(config.uri.removeprefix("sqlite:///")).write_bytes(b"no database" * 100)
    with caplog.at_level(logging.WARNING):
        deliver_lines(config, "r", folder, "KILLED")
    assert any("MLflow has not everything of run r" in text and "metrics.jsonl" in text for text in caplog.messages)
    deliver_lines(config.model_copy(update={"mlflow": False}), "r", folder, "KILLED")


def test_points_that_a_killed_process_had_queued_are_sent_by_the_one_that_goes_on(store, tmp_path: Path) -> None:
    folder, own = str(tmp_path / "runs" / "r"), store.model_copy(update={"flush_seconds": 3600.0})

    def start(step: int) -> Tracker:
        tracker = create_tracker(own, "r", None, {}, 0, folder)
        tracker.rewind(step)
        return tracker

    killed = start(0)
    killed.log_metrics({"train/loss": 1.0}, 1)
    killed.flush()
    for step in range(2, 2 + 1500):  # of which none is sent, and nothing is said at the end
        killed.log_metrics({"train/loss": 1 / step}, step)
    following = start(1499)
    following.log_metrics({"train/loss": -1.0}, 1500)
    following.finish("FINISHED")
    found = points(MlflowClient(store.uri), following.run_id, "train/loss")
    assert found == [(step, 1 / step) for step in range(1, 1500)] + [(1500, -1.0)]
    assert following.delivery == "complete"
