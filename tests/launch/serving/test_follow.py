"""What is served and which version is the newest; a version that cannot be served changes nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

import fleximoe
from launch.errors import UsageError
from launch.serving.follow import Follower
from launch.serving.source import Newest, Version, newest, put
from tests.launch.api.ward import SMALL, notes, stays, vitals

pytestmark = [pytest.mark.together, pytest.mark.long]


class Copies:
    """Say which version they were switched to."""

    def __init__(self) -> None:
        self.switched: list[str] = []

    def switch(self, version: Version) -> None:
        assert Path(version.url, "model.json").is_file()
        self.switched.append(version.name)


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    place = tmp_path_factory.mktemp("followed")
    data = fleximoe.pack(records=stays(), vitals=vitals(), notes=notes(), tasks="died", out=place / "ward")

    def fit(epochs: int):
        training = {**SMALL["training"], "epochs": epochs, "storage": place / "runs"}
        training |= {"early_stopping": {"metric": "val/loss"}} if epochs > 1 else {}
        return fleximoe.fit(data, **{**SMALL, "training": training}, name="ward", progress=False)

    return fit


def test_a_run_is_followed_and_what_does_not_fit_is_said_once(ward, tmp_path, caplog, monkeypatch):
    run = ward(1)
    found = newest(run.url)
    assert isinstance(found, Newest) and found.name == "ward-step-3"
    version = put(found, str(tmp_path))
    assert Path(version.url, "model.safetensors").is_file()
    copies = Copies()
    follower = Follower(run.url, str(tmp_path), found, version, copies)
    follower.look()
    assert copies.switched == ["ward-step-3"]  # to the same: for copies that have missed it

    def other(out: str) -> None:
        found.write(out)
        about = json.loads(Path(out, "model.json").read_text())
        about["schema"]["tasks"][0]["classes"] = ["x", "y"]
        Path(out, "model.json").write_text(json.dumps(about))

    monkeypatch.setattr("launch.serving.follow.newest", lambda model: Newest("other", "elsewhere", other))
    with caplog.at_level(logging.WARNING):
        follower.look()
        follower.look()
    said = [own.message for own in caplog.records if "cannot be served" in own.message]
    assert len(said) == 1 and "ward-step-3 stays, as other cannot be served: its tasks are not those of" in said[0]
    assert set(copies.switched) == {"ward-step-3"}

    monkeypatch.setattr("launch.serving.follow.newest", lambda model: Newest("next", "again", found.write))
    follower.look()
    assert copies.switched[-1] == "next" and not Path(version.url).exists() and Path(tmp_path, "next").is_dir()


def test_an_export_stays_where_it_is_and_a_name_that_is_none_is_a_sentence(ward, tmp_path, monkeypatch):
    run = ward(1)
    run.export(tmp_path / "model")
    assert newest(str(tmp_path / "model")) == Version("ward-step-3", str(tmp_path / "model"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(UsageError, match="models:/a/b is no version: write models:/NAME"):
        newest("models:/a/b")
    with pytest.raises(UsageError, match=r"models:/nobody: the MLflow at .* has no version of it"):
        newest("models:/nobody")
    with pytest.raises(UsageError, match="models:/nobody/3: "):
        newest("models:/nobody/3")


def test_calibration_goes_along_only_of_the_checkpoint_that_was_tested(ward, tmp_path):
    from trainer.checkpoints.find import open_checkpoint
    from trainer.inference.stored_calibration import stored_calibration
    from trainer.metrics.prediction_table import read_predictions

    run = ward(1)
    checkpoint = open_checkpoint(run.url)
    found = stored_calibration(checkpoint)
    tasks, said = read_predictions(Path(run.url, "predictions", "test.parquet"))
    chance, true = said.logits["died"].sigmoid()[:, 0], said.targets["died"][:, 0]
    assert found is not None and found["records"] == len(chance) and [task.name for task in tasks] == ["died"]
    own = found["tasks"]["died"]
    for place in range(15):
        inside = (chance * 15).long().clamp(0, 14) == place
        assert own["count"][place] == int(inside.sum())
        if inside.any():
            assert own["stated"][place] == pytest.approx(float(chance[inside].mean()), abs=1e-6)
            assert own["true"][place] == pytest.approx(float(true[inside].mean()), abs=1e-6)
    checkpoint.meta["step"] += 1
    assert stored_calibration(checkpoint) is None
    checkpoint.meta["step"] -= 1
    Path(run.url, "predictions", "test.parquet").write_bytes(b"PAR1 no more")
    assert stored_calibration(checkpoint) is None
