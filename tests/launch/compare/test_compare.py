"""`compare` on real runs in a real MLflow, and its report in a real browser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from launch.compare.comparison import compare
from launch.compare.report import page
from launch.compare.variants import group
from tests.browser import open_browser
from tests.launch.commands import SMALL, last_json, python
from trainer.tracking.history import TrackedRun, UnknownRunError, find_runs

pytestmark = pytest.mark.together
RUN = """
import sys
from pathlib import Path
from trainer.jobs.job import run
from trainer.config.paths import absolute_paths
from trainer.config.recipe import load_recipe
from trainer.worker.context import SingleContext
from trainer.checkpoints.evaluation_recipe import evaluation_config
from trainer.checkpoints.find import open_checkpoint
folder, *common = sys.argv[1:]
for gate in ("laplace", "softmax"):
    for seed in (0, 1):
        words = [f"name={gate}{seed}", f"model.moe.gate={gate}", f"training.seed={seed}", "optim.lr=0.01"]
        config = absolute_paths(load_recipe("synthetic_small", [*common, *words]), Path(folder))
        run(config, SingleContext())
checkpoint = open_checkpoint(f"{folder}/runs/laplace0")
curve = evaluation_config(checkpoint, missing_curve=True, missing_seeds=2, temperature=True)
run(curve, SingleContext())
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two gates with two seeds each, trained in one process; one of them with a missing-modality curve."""
    folder = tmp_path_factory.mktemp("compare")
    options = ["-o", "records=400", "-o", "modalities=series:1,vector:2", "--workers", "1"]
    last_json(python("-m", "launch", "pack", "synthetic", "--out", str(folder / "data"), *options))
    common = ["data.url=data", "training.storage=runs", "parallel.workers=1", "parallel.expert_parallel=1"]
    script = folder / "run.py"
    script.write_text(RUN)
    done = python("-c", RUN, str(folder), *SMALL, *common, "tracking.experiment=gates")
    assert done.returncode == 0, done.stderr
    return folder


def uri(place: Path) -> str:
    return f"sqlite:///{place}/mlflow.db"


def test_a_run_is_logged_such_that_it_explains_itself(place):
    client = MlflowClient(uri(place))
    runs = find_runs(uri(place), [], "gates")
    assert [run.name for run in runs] == ["laplace0", "laplace1", "softmax0", "softmax1"]
    assert len({frozenset(run.params) for run in runs}) == 1, "the same keys in every run"
    assert len({frozenset(run.metrics) - {"missing/positive/auroc"} for run in runs[1:]}) == 1
    run = runs[1]
    assert run.metrics["best/val/loss"] == min(value for _, value in run.history("val/loss"))
    assert run.metrics["best/step"] in dict(run.history("val/loss"))
    assert {"train/samples_seen", "train/tokens_seen", "system/node0/cpu_utilization_percentage"} <= set(run.metrics)
    assert next(iter(client.get_run(run.id).data.metrics)) == "train/loss", "MLflow's compare page draws the first one"
    assert run.params["dataset.digest"] == run.tags["dataset.digest"]
    wanted = ("recipe.yaml", "requirements.txt", "config.json", "predictions/test.parquet")
    assert all(run.artifact(path) is not None for path in wanted) and run.artifact("nothing.txt") is None
    assert "torch==" in run.artifact("requirements.txt").read_text()
    experiment = client.get_experiment_by_name("gates").experiment_id
    models = {model.source_run_id: model for model in client.search_logged_models([experiment])}
    assert models[run.id].params["data.digest"] == run.params["dataset.digest"]
    assert "/softmax0/checkpoints/step-" in models[runs[2].id].params["uri"]
    assert [step for step, _ in runs[0].history("missing/positive/auroc")] == [0, 10, 20, 30, 40, 50, 60, 70]
    assert "temperature/label" in runs[0].metrics and runs[0].json("missing_curve.json")["part"] == "test"


def test_seeds_are_one_variant_and_intervals_hold_the_mean(place):
    found = compare(find_runs(uri(place), [], "gates"))
    assert {variant.label for variant in found.variants} == {"gate=laplace", "gate=softmax"}
    assert all(len(variant.runs) == 2 for variant in found.variants)
    assert set(found.differing) == {"model.moe.gate", "training.seed"}
    for variant in found.variants:
        middle, spread = variant.spread(found.metric)
        interval = variant.interval(found.metric)
        assert spread is not None and interval is not None
        assert interval.value == pytest.approx(middle, abs=1e-6) and interval.low <= middle <= interval.high
    (pair,) = found.pairs
    assert pair.shared_seeds == 2 and pair.records is not None
    difference = found.variants[0].spread(found.metric)[0] - found.variants[1].spread(found.metric)[0]
    assert pair.records.value == pytest.approx(difference, abs=1e-6) and difference >= 0


def test_variants_that_differ_in_much_are_called_by_their_runs():
    def run(name, **params):
        return TrackedRun("", name, name, "FINISHED", 0, {key: str(value) for key, value in params.items()}, {}, {})

    digests = ["a" * 64, "b" * 64]
    few = group(
        [run("x", gate="laplace", **{"dataset.digest": digests[0]}), run("y", **{"dataset.digest": digests[1]})]
    )
    assert [variant.label for variant in few] == [
        "digest=aaaaaaaaaaaa..., gate=laplace",
        "digest=bbbbbbbbbbbb..., gate=",
    ]
    many = dict.fromkeys("abcde", 1)
    runs = [run("x", **many), run("z", **many, **{"training.seed": 1}), run("y", **dict.fromkeys("abcde", 2))]
    assert [variant.label for variant in group(runs)] == ["x and 1 more", "y"]


def test_the_command_takes_folders_names_and_ids(place):
    runs = find_runs(uri(place), [], "gates")
    words = [str(place / "runs" / "laplace0"), "softmax0", runs[3].id]
    done = python(
        "-m", "launch", "compare", *words, "--uri", uri(place), "--metric", "loss", "--html", str(place / "r.html")
    )
    result = last_json(done)
    assert result["metric"] == "test/loss" and sum(len(row["runs"]) for row in result["variants"]) == 3
    means = [row["metrics"]["test/loss"]["mean"] for row in result["variants"]]
    assert means == sorted(means), "a smaller loss is better"
    assert "pairs, by test/loss" in done.stderr and Path(result["html"]).exists()
    with pytest.raises(UnknownRunError, match="no run of that id or name"):
        find_runs(uri(place), ["nobody"], None)
    with pytest.raises(UnknownRunError, match="no experiment 'other'; there are"):
        find_runs(uri(place), [], "other")
    wrong = python("-m", "launch", "compare")
    assert wrong.returncode == 2 and "name the runs to compare" in wrong.stderr


def test_the_report_opens_in_a_browser_and_asks_for_nothing(place, tmp_path):
    report = tmp_path / "report.html"
    report.write_text(page(compare(find_runs(uri(place), [], "gates"))), encoding="utf-8")
    with open_browser(tmp_path) as browser:
        opened = browser.open(report)
        assert opened.problems == [] and opened.requests == [opened.url]
        headings = opened.evaluate("[...document.querySelectorAll('h2')].map(h => h.textContent)")
        assert headings == [
            "Which is better",
            "Whether the difference means anything",
            "What differs",
            "Learning curves",
            "Calibration",
            "Which expert serves which modality",
            "What absent modalities cost",
            "The runs",
        ]
        assert opened.evaluate("document.querySelectorAll('figure svg').length") == 6
        assert opened.evaluate("document.body.scrollWidth <= window.innerWidth")
        shot = opened.screenshot(tmp_path / "report.png")
        assert shot.stat().st_size > 50_000


def test_text_of_others_cannot_become_part_of_the_page(place):
    runs = find_runs(uri(place), [], "gates")
    for run in runs:
        run.params = {**run.params, "note": f"<script>alert({run.id!r})</script>"}
    text = page(compare(runs))
    assert "<script>alert" not in text and text.count("<script") == 1 and "&lt;script&gt;alert" in text


def test_runs_without_predictions_or_on_other_data_are_said_so(place, tmp_path):
    shutil.copytree(place / "mlartifacts", tmp_path / "kept")
    runs = find_runs(uri(place), [], "gates")
    runs[0]._lists["predictions"] = set()
    runs[1].params = {**runs[1].params, "dataset.digest": json.dumps("other")}
    runs[3].metrics = {}
    found = compare(runs)
    text = " ".join(found.notes)
    assert (
        "laplace0 kept no test predictions" in text
        and "measured on different data sets (e.g. laplace0 and laplace1)" in text
    )
    assert "no test metrics: softmax1" in text and len(found.runs) == 3
