"""What TensorBoard's own reader, and the records of Weights & Biases, say of a run is what was logged."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from data_shards.errors import LeaseDoubtError, LeaseLostError
from trainer.config.sections import TrackingConfig
from trainer.tracking.create import create_tracker
from trainer.tracking.elsewhere import guarded
from trainer.tracking.elsewhere.tensorboard_events import TensorBoardSink

FILES = TrackingConfig(mlflow=False, tensorboard=True)
TAGS = {"git.commit": "abc", "mlflow.user": "somebody"}


def log_a_run(tracker, first, last):
    """Steps [first, last), and one of everything else."""
    tracker.log_params({"model": {"dim": 16}})
    tracker.log_dataset("ward", "data/ward", "d" * 64, "training")
    for step in range(first, last):
        tracker.log_metrics({"train/loss": 1 / (step + 1), "val/auroc": 0.5 + step / 100}, step)
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([1, 2])
    tracker.log_figure("figures/roc.png", figure)
    tracker.log_text("recipe.yaml", "name: r\n")
    tracker.log_text("weights.bin", "no text to show")


def events(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    found.Reload()
    return found


def scalars(found, name):
    return {point.step: point.value for point in found.Scalars(name)}


def test_tensorboard_reads_what_was_logged_and_forgets_what_a_restart_makes_again(tmp_path, caplog):
    caplog.set_level("INFO")
    for first, last in ((0, 6), (4, 8)):
        tracker = create_tracker(FILES, "r", None, TAGS, 0, str(tmp_path / "r"))
        tracker.rewind(first - 1)
        log_a_run(tracker, first, last)
        tracker.finish("FINISHED")
    assert "1 files that TensorBoard cannot show" in caplog.text
    found = events(tmp_path / "r" / "tensorboard")
    expected = {step: np.float32(1 / (step + 1)) for step in range(8)}
    assert scalars(found, "train/loss") == expected and set(scalars(found, "val/auroc")) == set(range(8))
    assert len(found.Scalars("train/loss")) == 8, "steps 4 and 5 of the first start are void"
    (first_image, second) = found.Images("figures/roc.png")
    assert first_image.encoded_image_string == second.encoded_image_string and first_image.width == 200
    told = found.Tensors("params")[-1].tensor_proto.string_val[0].decode()
    assert "| model.dim | `16` |" in told
    assert b"name: r" in found.Tensors("recipe.yaml")[-1].tensor_proto.string_val[0]
    tags = json.loads(found.Tensors("tags")[0].tensor_proto.string_val[0])
    assert tags == {"values": {"git.commit": "abc"}}, "MLflow's own names are MLflow's"
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["tags"] == {"git.commit": "abc"}
    assert "FINISHED" in found.Tensors("status")[-1].tensor_proto.string_val[0].decode()


def test_other_ranks_write_nothing(tmp_path):
    create_tracker(FILES, "r", None, TAGS, 1, str(tmp_path / "r")).log_metrics({"a": 1.0}, 1)
    assert not (tmp_path / "r").exists()


class Guard:
    """Says what it is told to."""

    error: Exception | None = None

    def check(self):
        if self.error:
            raise self.error

    confirm = check


def test_nothing_is_written_while_the_name_is_in_doubt_nor_once_it_is_lost(tmp_path):
    guard = Guard()
    sink = TensorBoardSink(str(tmp_path), guard)
    guard.error = LeaseDoubtError("nothing was heard")
    sink.take({"op": "metrics", "values": {"a": 1.0}, "step": 1, "time": 0})
    sink.flush(1)
    assert events(tmp_path / "tensorboard").Tags()["scalars"] == []
    guard.error = None
    sink.take({"op": "metrics", "values": {"a": 2.0}, "step": 2, "time": 0})
    sink.flush(1)
    assert scalars(events(tmp_path / "tensorboard"), "a") == {1: 1.0, 2: 2.0}
    guard.error = LeaseLostError("it is another's")
    with pytest.raises(LeaseLostError):
        sink.take({"op": "metrics", "values": {"a": 3.0}, "step": 3, "time": 0})


def test_what_cannot_be_written_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match=r"tracking.tensorboard writes files on this machine, and the run is kept at memory"
    ):
        create_tracker(FILES, "r", None, {}, 0, "memory://runs/r")
    monkeypatch.setattr(guarded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"tracking.tensorboard needs the package tensorboard: pip install 'fleximoe\[ten"
    ):
        create_tracker(FILES, "r", None, {}, 0, str(tmp_path))
    with pytest.raises(ValueError, match=r"tracking.wandb needs the package wandb: pip install 'fleximoe\[wandb\]'"):
        create_tracker(TrackingConfig(mlflow=False, wandb="p"), "r", None, {}, 0, str(tmp_path))


RUN = """
import sys
from trainer.config.sections import TrackingConfig
from trainer.tracking.create import create_tracker
from tests.trainer.tracking.elsewhere.test_elsewhere import TAGS, log_a_run
tracker = create_tracker(TrackingConfig(mlflow=False, wandb="wards"), "r", None, TAGS, 0, sys.argv[1])
log_a_run(tracker, 0, 5)
tracker.finish(sys.argv[2])
"""


def records(file: Path):
    """Messages in a file of Weights & Biases: a log in LevelDB's format, blocks of 32 KiB, after a head of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        left = (1 << 15) - place % (1 << 15)
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole one, or the last piece of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


@pytest.mark.long
@pytest.mark.parametrize(("status", "code"), [("FINISHED", 0), ("FAILED", 1)])
def test_records_of_weights_and_biases_are_what_was_logged_and_nothing_is_sent(tmp_path, status, code):
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "r"), status], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "r" / "wandb").glob("offline-run-*/*.wandb")
    found = list(records(file))
    about = next(record.run for record in found if record.WhichOneof("record_type") == "run")
    assert (about.project, about.display_name) == ("wards", "r") and not about.host.startswith("http")
    config = {}
    for record in found:
        for own in (record.run.config, record.config):
            config |= {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in own.update}
    assert config["model.dim"] == "16" and config["tags"] == {"git.commit": "abc"}
    assert config["dataset"]["digest"] == "d" * 64
    points = {}
    for record in found:
        if record.WhichOneof("record_type") == "history":
            row = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
            points[row["step"]] = (row["train/loss"], row["val/auroc"])
    assert points == {step: (1 / (step + 1), 0.5 + step / 100) for step in range(5)}
    (end,) = [record.exit.exit_code for record in found if record.WhichOneof("record_type") == "exit"]
    assert end == code
    kept = file.parent / "files"
    assert (kept / "recipe.yaml").read_text() == "name: r\n" and (kept / "figures" / "roc.png").stat().st_size > 500
