"""A run from Python: what it measured, predicts and explains is what the commands say of it."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import fleximoe
from launch.runs.prediction.predict import predict_into
from tests.launch.api.ward import SMALL, STAYS, notes, stays, vitals


def logits(predicted: pd.DataFrame) -> dict[str, float]:
    return dict(zip(predicted["key"], predicted["died.logits"], strict=True))


@pytest.fixture(scope="module")
def whole(run):
    return run.predict()


def test_what_a_run_is(run, place):
    assert run.name == "ward" and run.url == str(place / "runs" / "ward") and run.state == "finished"
    stored = json.loads((place / "runs" / "ward" / "result.json").read_text())
    assert run.metrics == stored["metrics"] and run.metrics["test/records"] > 0
    assert run.recipe["training"]["epochs"] == 2 and run.recipe["parallel"]["workers"] == 1 and run.mlflow_id is None
    history = run.history()
    losses = history[history["metric"] == "train/loss"]
    assert list(history.columns) == ["step", "metric", "value"] and losses["step"].tolist() == list(range(1, 7))
    assert "<td>test/auroc</td>" in run._repr_html_() and "<b>ward</b>, finished" in run._repr_html_()


def test_a_run_is_found_by_name_and_folder(run, place):
    assert fleximoe.open_run("ward", storage=place / "runs").url == run.url
    assert fleximoe.open_run(run.url).metrics == run.metrics


def test_predictions_are_those_of_the_command(run, whole, tmp_path):
    predict_into(run.url, None, str(tmp_path / "all.parquet"))
    pd.testing.assert_frame_equal(whole, pd.read_parquet(tmp_path / "all.parquet"))
    assert len(whole) == STAYS and sorted(whole["key"]) == sorted(stays()["stay"])


def test_new_frames_without_labels_are_read_by_the_mapping_of_the_training_data(run, whole, caplog):
    new = stays().drop(columns="died").head(9)
    said = run.predict(new, vitals=vitals(), notes=notes())
    assert caplog.messages == [
        "206 of the 242 rows of vitals are of none of these records (column 'stay')",
        "25 of the 30 rows of notes are of none of these records (column 'stay')",
    ]
    assert said["key"].tolist() == [f"s{n}" for n in range(9)] and said["died.target"].isna().all()
    known = logits(whole)
    np.testing.assert_allclose(
        [logits(said)[key] for key in said["key"]], [known[key] for key in said["key"]], atol=1e-6
    )


def test_records_are_predicted_as_the_rows_that_they_come_from(run, whole):
    series = fleximoe.Series(
        np.array([0.5, 1.0, 6.0, 12.0], np.float32), np.array([0, 1, 0, 1]), np.array([80, 97, 80, 97], np.float32)
    )
    values = {
        "vitals": series,
        "numbers": np.array([41.0, 1.0], np.float32),
        "categories": fleximoe.Codes(["sex=f"]),
    }
    said = run.predict(fleximoe.Record("s1", values))
    np.testing.assert_allclose(said["died.logits"], [logits(whole)["s1"]], atol=1e-6)
    # A table that is left out is a modality that is absent.
    less = run.predict(fleximoe.Record("s1", {k: v for k, v in values.items() if k != "vitals"}))
    without = run.predict(stays().iloc[1:2])
    np.testing.assert_allclose(less["died.logits"], without["died.logits"], atol=1e-6)
    assert abs(float(less["died.logits"].iloc[0]) - logits(whole)["s1"]) > 1e-6


def test_explained(run):
    told = run.explain(stays().head(2), vitals=vitals(), notes=notes())
    assert list(told.columns) == ["record", "key", "task", "modality", "object", "time", "what", "share"]
    wholes = told[told["object"].isna()]
    assert sorted(wholes[wholes["key"] == "s0"]["modality"]) == ["categories", "notes", "numbers", "vitals"]
    assert sorted(wholes[wholes["key"] == "s1"]["modality"]) == ["categories", "numbers", "vitals"]
    np.testing.assert_allclose(wholes.groupby("key")["share"].sum(), [1.0, 1.0], atol=1e-5)
    note = told[(told["modality"] == "notes") & told["object"].notna()].iloc[0]
    assert note["what"].startswith("patient number 0 had") and note["time"] == 3.0


def test_evaluated_with_a_modality_hidden(run):
    less = run.evaluate(drop="vitals", progress=False)
    assert less["test/records"] == run.metrics["test/records"] and "<td>test/auroc</td>" in less._repr_html_()
    assert abs(less["test/loss"] - run.metrics["test/loss"]) > 1e-6


@pytest.mark.long
def test_the_missing_curve_has_what_evaluate_says(run):
    curve = run.missing_curve(progress=False)
    assert list(curve.columns) == ["metric", "hidden", "share", "mean", "smallest", "largest"]
    first = curve.iloc[0]
    assert (first["metric"], first["hidden"]) == ("test/auroc", "nothing")
    assert first["mean"] == pytest.approx(run.metrics["test/auroc"], abs=1e-6)
    without = set(curve["hidden"]) - {"nothing"}
    assert {"without vitals", "without notes", "without numbers", "without categories"} <= without
    missing = curve[curve["hidden"] == "modalities missing at test time"]
    assert missing["share"].max() == pytest.approx(0.7) and (missing["smallest"] <= missing["largest"]).all()
    less = run.evaluate(drop="vitals", progress=False)
    row = curve[curve["hidden"] == "without vitals"].iloc[0]
    assert less["test/auroc"] == pytest.approx(row["mean"], abs=1e-6)


def test_exported(run, tmp_path):
    from trainer import load_model

    report = run.export(tmp_path / "model")
    assert report["parameters"] == sum(p.numel() for p in load_model(str(tmp_path / "model")).parameters())


@pytest.mark.long
def test_an_interrupted_fit_leaves_a_checkpoint_and_the_same_call_goes_on(data, place, monkeypatch):
    from contextlib import nullcontext

    from launch.api import child

    class Impatient:
        def line(self, text, level, steps):
            if text.startswith("step 1/"):
                raise KeyboardInterrupt

    again = child.show_progress
    training = {**SMALL["training"], "epochs": 200, "storage": place / "runs"}
    call = {**SMALL, "training": training, "name": "stopped"}
    monkeypatch.setattr(child, "show_progress", lambda wanted: nullcontext(Impatient()))
    with pytest.raises(fleximoe.RunError, match=r"stopped at step \d+ with a checkpoint; .* name=stopped continues"):
        fleximoe.fit(data, **call)
    run = fleximoe.open_run(str(place / "runs" / "stopped"))
    assert run.state == "stopped" and len(run.predict()) == STAYS
    monkeypatch.setattr(child, "show_progress", again)
    steps = int(run.history()["step"].max())
    call["training"] = {**training, "epochs": 200, "max_steps": steps + 3}
    finished = fleximoe.fit(data, **call, progress=False)
    history = finished.history()
    taken = history[history["metric"] == "train/loss"]["step"].tolist()
    assert finished.state == "finished" and taken == list(range(1, steps + 4))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder without an MLflow anywhere else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.mark.long
def test_runs_in_mlflow_are_compared(data, folder):
    made = []
    for name, seed in (("one", 0), ("two", 1)):
        settings = {**SMALL, "tracking": {"flush_seconds": 1}, "training": {**SMALL["training"], "seed": seed}}
        made.append(fleximoe.fit(data, **settings, name=name, progress=False))
    found = fleximoe.compare(made)
    assert found.metric == "test/auroc" and found.table["runs"].unique().tolist() == [2]
    mean = found.table[found.table["metric"] == "test/auroc"]["mean"].iloc[0]
    assert mean == pytest.approx((made[0].metrics["test/auroc"] + made[1].metrics["test/auroc"]) / 2)
    found.save("report.html")
    assert "<html" in (folder / "report.html").read_text() and "<table" in found._repr_html_()
    assert fleximoe.open_run(made[0].mlflow_id).url == fleximoe.open_run("one").url == made[0].url


@pytest.mark.long
@pytest.mark.ray
def test_workers_are_asked_of_ray(data, folder):
    """Two of Ray learn what one process without Ray learns; by a draw of dropout they would differ."""
    model = {**SMALL["model"], "dropout": 0.0, "modality_dropout": 0.0}
    one = fleximoe.fit(data, **{**SMALL, "model": model}, name="one", progress=False)
    two = fleximoe.fit(data, **{**SMALL, "model": model}, parallel={"workers": 2}, name="two", progress=False)
    assert two.recipe["parallel"]["workers"] == 2 and two.state == "finished"
    assert two.metrics["test/loss"] == pytest.approx(one.metrics["test/loss"], abs=1e-5)
    losses = [said.history().query("metric == 'train/loss'")["value"] for said in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
