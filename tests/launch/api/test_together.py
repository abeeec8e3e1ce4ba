"""Several runs as one model: chosen on validation, and one run for every command."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import fleximoe
from launch.compare.comparison import compare
from launch.runs.ensemble import show_ensemble
from launch.runs.train import evaluate_run
from launch.serving.source import newest, put
from tests.launch.api.test_portable import patterns, records
from tests.launch.api.ward import SMALL, notes, stays, vitals
from trainer.baseline.learners import families
from trainer.baseline.learners.trees import TreeSetting
from trainer.ensemble.export import write_registered_ensemble
from trainer.ensemble.portable import open_export
from trainer.metrics.formulas import auroc, counts_by_score
from trainer.run_folder import TEST_PREDICTIONS
from trainer.tracking.history import find_runs

OFF = {"tracking": {"mlflow": False}}


@pytest.fixture(scope="module")
def here(place):
    return {**OFF, "training": {"storage": place / "runs"}}


@pytest.fixture(scope="module")
def tracked(place, here):
    return {**here, "tracking": {"uri": f"sqlite:///{place}/mlflow.db"}}


@pytest.fixture(scope="module")
def second(place, data):
    training = {**SMALL["training"], "storage": place / "runs", "seed": 1}
    return fleximoe.fit(data, **{**SMALL, "training": training}, name="ward1", progress=False)


@pytest.fixture(scope="module")
def trees(data, tracked):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "SETTINGS", (TreeSetting(iterations=15, rate=0.3, least=3),))
        return fleximoe.baseline(data, name="base", **tracked)


@pytest.fixture(scope="module")
def both(run, second, here):
    return fleximoe.ensemble([run, second], name="both", **here)


@pytest.fixture(scope="module")
def best(run, second, trees, tracked):
    return fleximoe.ensemble([run.url, second.url], blend=trees, name="best", **tracked)


def chances(said: pd.DataFrame) -> np.ndarray:
    return said["died.probability"].to_numpy(np.float64)


def test_predictions_are_the_mean_of_the_members_chances(run, second, trees, both, best):
    said = [model.predict() for model in (run, second, trees)]
    together = both.predict()
    assert list(together.columns) == list(said[0].columns) and together["key"].tolist() == said[2]["key"].tolist()
    assert chances(together) == pytest.approx((chances(said[0]) + chances(said[1])) / 2, abs=1e-6)
    weights = json.loads(open_text(best, "ensemble.json"))["weights"]["died"]
    assert weights[0] == weights[1] and sum(weights) == pytest.approx(1)
    expected = sum(weight * chances(own) for weight, own in zip(weights, said, strict=True))
    assert chances(best.predict()) == pytest.approx(expected, abs=1e-6)
    assert np.abs(chances(said[0]) - chances(said[1])).max() > 1e-3, "two that differ"


def open_text(run, name):
    with open(f"{run.url}/{name}") as file:  # noqa: PTH123
        return file.read()


def test_the_weight_is_the_one_that_is_best_on_validation(run, second, trees, best):
    stored = json.loads(open_text(best, "result.json"))
    scores = dict(map(tuple, stored["chosen"]["died"]["scores"]))
    weight = stored["weights"]["died"][-1]
    assert stored["members"] == ["ward", "ward1", "base-trees"] and scores[weight] == max(scores.values())
    said = [model.predict(part="val") for model in (run, second, trees)]
    truth = torch_of(said[0]["died.target"])
    for own in (0.0, 0.4, weight):
        mixed = (1 - own) * (chances(said[0]) + chances(said[1])) / 2 + own * chances(said[2])
        assert scores[own] == pytest.approx(float(auroc(*counts_by_score(torch_of(mixed), truth.long()))), abs=1e-6)


def torch_of(values):
    import torch

    return torch.from_numpy(np.array(values, np.float64))


def test_it_is_measured_as_what_it_predicts_and_evaluated_again(best, both, capsys):
    said = best.predict(part="test")
    truth = torch_of(said["died.target"])
    found = float(auroc(*counts_by_score(torch_of(chances(said)), truth.long())))
    assert best.metrics["test/auroc"] == pytest.approx(found, abs=1e-9) and best.metrics["test/records"] == len(said)
    assert best.evaluate() == {k: v for k, v in best.metrics.items() if k.startswith("test/")}
    evaluate_run(best.url, None, "val", [], [], False)
    printed = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert printed["metrics"] == {k: v for k, v in best.metrics.items() if k.startswith("val/")}


def test_new_records_are_predicted(both, run, second):
    new = stays().drop(columns="died").head(5)
    said = [model.predict(new, vitals=vitals(), notes=notes()) for model in (both, run, second)]
    assert chances(said[0]) == pytest.approx((chances(said[1]) + chances(said[2])) / 2, abs=1e-6)


def test_an_export_has_all_members_and_says_the_same(best, trees, here, tmp_path):
    report = best.export(str(tmp_path / "model"))
    assert report["members"] == 3
    model = fleximoe.load(tmp_path / "model")
    said, wanted = model.predict(model.records(patterns())).to_pandas(), best.predict(records())
    assert said["key"].tolist() == wanted["key"].tolist() and chances(said) == pytest.approx(chances(wanted), abs=1e-6)
    assert model.rows([model.example]).columns.tolist() == [name for name in wanted if name != "died.target"]
    with pytest.raises(ValueError, match="is an ensemble, and a record is explained by one model"):
        model.predict(model.records(patterns()), explain=True)
    served = put(newest(best.url), str(tmp_path / "served"))
    assert served.name == best.name and newest(str(tmp_path / "model")).name == best.name
    again = open_export(served.url)
    assert again.predict(again.records(patterns())).to_pandas().equals(said)
    assert again.description["calibration"] is None  # a member has one of its own
    code = write_registered_ensemble(best.url, str(tmp_path / "registered"))
    assert code is not None and "open_export" in (tmp_path / "registered" / "mlflow_code.py").read_text()
    linear = fleximoe.baseline(trees.recipe["data"]["url"], family="linear", name="flat", **here)
    alone = fleximoe.ensemble([trees, linear], name="alone", **here)
    with pytest.raises(fleximoe.InputError, match="alone is an ensemble of baselines: only one with a trained member"):
        alone.export(str(tmp_path / "none"))


def test_a_baseline_predicts(trees):
    kept = pd.read_parquet(f"{trees.url}/{TEST_PREDICTIONS}")
    again = trees.predict(part="test").drop(columns="key")
    pd.testing.assert_frame_equal(again, kept)


def test_compare_takes_it_like_any_run(best, trees):
    found = compare(find_runs(None, [best.url, trees.url], None))
    (pair,) = found.pairs
    assert found.comparable and {own.label for own in found.variants} == {"best", "base-trees"}
    difference = best.metrics["test/auroc"] - trees.metrics["test/auroc"]
    assert abs(pair.records.value) == pytest.approx(abs(difference), abs=1e-6)


def test_what_does_not_go_together_is_refused(run, second, both, data, here, place, tmp_path):
    def refused(words, runs, **more):
        with pytest.raises(fleximoe.InputError, match=words):
            fleximoe.ensemble(runs, **{"name": "none", **here, **more})
        assert not (place / "runs" / "none").exists()

    refused("an ensemble has two members at least", [run])
    refused("ward is named twice", [run, second, run])
    refused("both is an ensemble itself: name its members", [run, both])
    refused("holds a run already", [run, second], name="both")
    refused("takes a list of runs", run)
    with pytest.raises(fleximoe.InputError, match="both is an ensemble, and each of its members is a graph of its own"):
        both.export(str(tmp_path / "model"), format="pt2")
    with pytest.raises(fleximoe.InputError, match="is an ensemble, and --explain is of one trained model"):
        both.explain()
    with pytest.raises(fleximoe.InputError, match="is no single trained model, and --missing-curve is of one"):
        both.missing_curve()
    other = fleximoe.pack(records=stays().head(50), vitals=vitals(), notes=notes(), tasks="died", out=tmp_path / "d")
    foreign = fleximoe.baseline(other, family="linear", name="other", **OFF, training={"storage": tmp_path})
    refused("other-linear learned from data of digest .*, ward from", [run], blend=foreign)


def test_the_command(run, second, place, capsys):
    show_ensemble([run.url, second.url, "name=said", f"training.storage={place}/runs", "tracking.mlflow=false"], None)
    printed = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert printed["name"] == "said" and printed["weights"] == {"died": [0.5, 0.5]} and printed["chosen"] == {}
