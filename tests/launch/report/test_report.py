"""A run's page says what the run says, to the last digit, and a sweep's what its trials logged."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pytest

import fleximoe
from data_shards import open_manifest
from launch.report.chosen import chosen
from launch.report.kept import kept_by
from launch.report.measured import evenness, expert_rows, seconds_by_line
from launch.report.run_page import run_page
from launch.report.sweep import read_sweep
from launch.report.sweep_page import sweep_page
from trainer.evaluation.sampled import spread_evenly
from trainer.metrics.bootstrap.intervals import draw_weights, interval
from trainer.metrics.bootstrap.measures import task_measures
from trainer.metrics.prediction_table import read_predictions

ROW = re.compile(r"<tr>(<td.*?)</tr>")
CELL = re.compile(r'<td(?: class="\w+")?(?: data-value="([^"]*)")?>(.*?)</td>')


def rows(page: str, title: str) -> list[list[str]]:
    """Cells of a section's tables: numbers as they are kept, texts as they are read."""
    part = page.split(f"<h2>{title}</h2>")[1].split("</section>")[0]
    return [[whole or unescape(text) for whole, text in CELL.findall(row)] for row in ROW.findall(part)]


@pytest.mark.long
def test_numbers_of_the_page_are_those_of_the_run(run, page):
    stored = json.loads((Path(run.url) / "result.json").read_text())["metrics"]
    told = {row[0]: row[1:] for row in rows(page, "Test metrics")}
    assert {name: float(row[0]) for name, row in told.items()} == {
        name: value for name, value in stored.items() if name != "test/records"
    }
    (task,), predictions = read_predictions(Path(run.url) / "predictions" / "test.parquet")
    measure = task_measures(task, predictions.logits["died"], predictions.targets["died"])["auroc"]
    own = interval(measure(draw_weights(predictions.records)))
    assert own is not None and list(map(float, told["test/auroc"])) == [stored["test/auroc"], own.low, own.high]
    sentence = f"test/auroc is {stored['test/auroc']:.4f}, 95 % {own.low:.4f} to {own.high:.4f} (more is better)"
    assert sentence in page, "the sentence is of the table's numbers"
    cost = {row[0]: row[1] for row in rows(page, "Cost")}
    lines = [json.loads(line) for line in (Path(run.url) / "metrics.jsonl").read_text().splitlines()]
    seen = [line["metrics"]["train/samples_seen"] for line in lines if "train/samples_seen" in line.get("metrics", {})]
    assert int(cost["samples seen"]) == max(seen) and "a step, median" in cost
    lineage = dict(rows(page, "Where it is from"))
    assert lineage["data digest"] == open_manifest(run.recipe["data"]["url"]).digest
    tags = {name: value for line in lines for name, value in line.get("tags", {}).items()}
    assert lineage["command"] == tags["command"] and lineage.get("code", "").split(" ")[0] == tags.get("git.commit", "")
    assert lineage["best checkpoint"] == json.loads((Path(run.url) / "result.json").read_text())["checkpoint"]
    assert lineage["best step"].endswith("; the best by val/loss") and lineage["seeds"] == "0 (training), 0 (data)"
    assert "dim: 16" in page.split("<summary>the recipe</summary>")[1]


@pytest.mark.long
def test_what_is_computed_is_what_evaluate_and_explain_measure_and_the_sample_is_said(run, page, place):
    assert "on samples of the test part: 4 of " in page
    whole = run.report(place / "whole.html", sample=1000).read_text(encoding="utf-8")
    assert f"on samples of the test part: all {int(run.metrics['test/records'])}." in whole
    cost = {(row[1], row[2]): float(row[3]) for row in rows(whole, "What absent modalities cost")}
    assert cost["nothing", "0%"] == pytest.approx(run.metrics["test/auroc"], abs=1e-6)
    for name in ("vitals", "notes"):
        measured = run.evaluate(drop=name, progress=False)["test/auroc"]
        assert cost[f"without {name}", "100%"] == pytest.approx(measured, abs=1e-6)
    reasons = run.explain(part="test")
    alone = reasons[reasons["object"].isna()].groupby("modality")["share"]
    shares = {row[1]: (float(row[2]), int(row[3])) for row in rows(whole, "What answers rest on") if len(row) == 4}
    assert shares.keys() == set(alone.groups)
    for name, (share, samples) in shares.items():
        assert share == pytest.approx(alone.mean()[name], abs=1e-5) and samples == alone.count()[name]
    times = [float(row[2]) for row in rows(whole, "What answers rest on") if len(row) == 3]
    assert len(times) == 8 and sum(times) == pytest.approx(1)
    horizon = {spec.name: spec.horizon for spec in open_manifest(run.recipe["data"]["url"]).schema.modalities}
    hours = {"vitals": {0.5, 1.0, 6.0, 12.0}, "notes": {3.0, 4.0, 5.0, 6.0, 7.0}}
    filled = {name: {min(7, int(8 * hour / horizon[name])) for hour in own} for name, own in hours.items()}
    assert all(times[place] > 0 for place in filled["vitals"])
    assert all(times[place] == 0 for place in set(range(8)) - filled["vitals"] - filled["notes"])


@pytest.mark.long
def test_names_are_text_and_what_stands_against_computing_is_said(run, page, place):
    shutil.copytree(run.url, place / "moved" / "<b>ward")
    (place / "ward").rename(place / "gone")
    try:
        away = fleximoe.open_run(place / "moved" / "<b>ward").report(place / "away.html").read_text(encoding="utf-8")
    finally:
        (place / "gone").rename(place / "ward")
    assert "<b>ward" not in away and "Run &lt;b&gt;ward" in away
    assert "The data cannot be looked at from here" in away and "Not computed: " in away
    assert rows(away, "Test metrics") == rows(page, "Test metrics"), "what the run keeps is there all the same"
    with pytest.raises(fleximoe.InputError, match="a sample of -1 records"):
        run.report(sample=-1)
    with pytest.raises(fleximoe.InputError, match="names no run of MLflow"):
        fleximoe.Run(str(place / "ward")).report()


def test_a_run_whose_log_is_begun_only_is_shown_as_far_as_it_went(tmp_path):
    lines = [
        {"time": 5.0, "params": {"data.url": "nowhere", "parallel.workers": "2"}},
        {"time": 6.0, "step": 2, "metrics": {"train/loss": 2.0, "perf/step_s": 0.5, "perf/tflops": 3.0}},
        {"time": 7.0, "step": 6, "metrics": {"train/loss": 1.0, "perf/step_s": 0.25, "perf/tflops": 6.0}},
        {"time": 8.0, "step": 6, "metrics": {"val/loss": 1.5, "val/auroc": 0.75}},
    ]
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    kept = kept_by(str(folder))
    assert kept.history("train/loss") == [(2, 2.0), (6, 1.0)] and seconds_by_line(kept) == {2: 1.0, 6: 1.0}
    page = fleximoe.Run(str(folder)).report(tmp_path / "p.html", sample=0).read_text(encoding="utf-8")
    assert "The run is not finished, as far as it has said; val/loss is 1.5000 (less is better)." in page
    assert "It has no test metrics" in page and "--sample 0 was given" in page
    cost = {row[0]: float(row[1]) for row in rows(page, "Cost")}
    assert cost["arithmetic in training steps"] == 2 * (3.0 * 1.0 + 6.0 * 1.0) and cost["time in training steps"] == 2.0


def test_shares_of_experts_and_their_evenness():
    table = {"modalities": ["a", "b", "c"], "layers": [[[3.0, 1.0], [0.0, 0.0], [5.0, 5.0]]]}
    expected = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / np.log(2)
    assert expert_rows(table) == [(0, "a", 4, 0, 0.75, pytest.approx(expected)), (0, "c", 10, 0, 0.5, pytest.approx(1))]
    assert evenness(np.array([4.0])) == 1.0 and evenness(np.array([4.0, 0.0, 0.0])) == 0.0
    assert expert_rows(None) == []


@pytest.mark.parametrize(
    ("samples", "wanted", "each"), [(359, 256, 32), (100, 256, 32), (1000, 50, 7), (5, 3, 8), (9, 9, 2)]
)
def test_samples_are_spread_evenly_and_none_is_taken_twice(samples, wanted, each):
    taken = [number for own in spread_evenly(samples, wanted, each) for number in range(own.start, own.stop)]
    assert len(taken) == len(set(taken)) == min(samples, wanted) and min(taken) >= 0 and max(taken) < samples
    assert taken == sorted(taken)
    if samples > wanted and wanted > each:
        assert taken[0] == 0 and taken[-1] == samples - 1


def test_a_sweep_is_what_its_trials_logged(sweep):
    found = read_sweep(str(sweep))
    assert found is not None and found.keys == ["optim.lr"]
    assert [trial.state for trial in found.trials] == ["finished", "finished", "stopped early", "finished"]
    assert found.variants() == [((0.1,), pytest.approx(0.8), 2, 2), ((0.001,), 0.55, 1, 2)]
    assert found.by_budget() == [(100.0, 0.8, "s-002"), (200.0, 0.9, "s-001")]
    assert found.so_far()["s-003"] == [(100.0, 0.55), (200.0, 0.55)]
    page = sweep_page(found)
    assert "4 trials: 3 finished, 1 stopped early." in page and "of which more is better" in page
    assert rows(page, "Variants") == [["0.1", str((0.7 + 0.9) / 2), "2 of 2"], ["0.001", "0.55", "1 of 2"]]
    assert rows(page, "Best by budget") == [["100", "0.8", "s-002"], ["200", "0.9", "s-001"]]
    assert [row[4] for row in rows(page, "Trials")] == ["0.7", "0.9", "0.8", "0.55"]
    assert read_sweep(str(sweep / "s-000")) is None


def test_a_sweep_that_wants_less_has_the_smallest_as_its_best(sweep):
    stored = json.loads((sweep / "sweep.json").read_text())
    (sweep / "sweep.json").write_text(json.dumps({**stored, "mode": "min"}))
    found = read_sweep(str(sweep))
    assert found is not None and found.variants() == [((0.1,), pytest.approx(0.55), 2, 2), ((0.001,), 0.5, 1, 2)]
    assert found.by_budget() == [(100.0, 0.5, "s-001")]


def test_members_and_what_a_baseline_chose_are_told():
    result = {"members": ["a", "b"], "weights": {"died": [0.7, 0.3]}, "chosen": {}}
    (told, rows) = chosen(result)
    assert "by its weight." in told and "chosen" not in told and "<td>died</td>" in rows and 'data-value="0.7"' in rows
    scores = {"died": {"metric": "val/auroc", "scores": [[0.25, 0.5], [0.3, 0.75]]}}
    (told, rows) = chosen({**result, "chosen": scores})
    assert "The weight of b was chosen" in told and "val/auroc" in rows and 'data-value="0.75"' in rows
    found = {"died": [{"penalty": 0.001, "iterations": 12, "val_loss": 0.5}]}
    told, note, rows = chosen({"family": "linear", "chosen": found, "notes": ["few labels"]})
    assert "family linear" in told and "few labels" in note and "penalty 0.001, iterations 12" in rows
    assert 'data-value="0.5"' in rows and chosen({"status": "finished"}) == []


def test_a_run_on_a_frozen_backbone_says_what_is_trained_and_what_its_prompts_do(tmp_path):
    sizes = {"parameters/total": 7.0, "parameters/experts": 0.0, "parameters/active": 7.0, "parameters/frozen": 1000.0}
    lines = [
        {"params": {"mope.host": "runs/icu", "training.early_stopping.metric": "val/auroc", "job": "mope"}},
        {"time": 1.0, "step": 3, "metrics": {**sizes, "best/step": 3.0}},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "mope").mkdir()
    (tmp_path / "mope" / "expert_by_site.json").write_text(json.dumps({"block.0.labs": [0.25, 0.75]}))
    (tmp_path / "mope" / "routing_entropy.json").write_text(json.dumps({"block.0.labs": 0.5}))
    page = run_page(str(tmp_path), 0)
    assert rows(page, "Prompt experts") == [["block.0.labs", "1", "0.75", "0.5"]]
    cost = {row[0]: row[1] for row in rows(page, "Cost")}
    assert cost["trained parameters"] == "7" and cost["frozen parameters"] == "1000" and "parameters" not in cost
    lineage = dict(rows(page, "Where it is from"))
    assert lineage["backbone: mope.host"] == "runs/icu" and lineage["best step"] == "3; the best by val/auroc"
    assert "<h2>Experts</h2>" not in page and "<h2>What it consists of</h2>" not in page
