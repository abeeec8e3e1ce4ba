"""The missing-modality curve and temperatures of a checkpoint, against evaluations made one at a time."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from data_shards import open_manifest
from data_shards.loading.loader import StepLoader
from tests.trainer.jobs.test_train import job
from tests.trainer.tiny import config, packed
from trainer.checkpoints.evaluation_recipe import evaluation_config
from trainer.checkpoints.find import open_checkpoint
from trainer.evaluation.missing_curve import RATES
from trainer.metrics.main_metric import by_rate, larger_is_better, main_metric_of_tasks, primary_metric
from trainer.metrics.temperature import read_temperatures
from trainer.models.layers.missing import drop_modalities

pytestmark = pytest.mark.together


@pytest.fixture(scope="module")
def curved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict]:
    """A run, evaluated with everything on two ranks."""
    folder = tmp_path_factory.mktemp("curve")
    data = packed(folder / "data", records=60)
    job(1, config(data, folder, training__epochs=1))
    wishes = {"missing_curve": True, "missing_seeds": 2, "temperature": True}
    wanted = evaluation_config(open_checkpoint(str(folder / "run")), **wishes)
    wanted.parallel.workers = wanted.parallel.expert_parallel = 2
    return data, folder / "run", job(2, wanted)


def test_each_modality_removed_is_what_drop_gives(curved: tuple[str, Path, dict]) -> None:
    _, run, result = curved
    rows = {row["modality"]: row for row in result["missing_curve"]["without"]}
    assert len(rows) == 7 and result["missing_curve"]["whole"] == result["metrics"]
    alone = job(1, evaluation_config(open_checkpoint(str(run)), drop=["scan"]))["metrics"]
    assert rows["scan"]["metrics"] == pytest.approx(alone, rel=1e-4, abs=1e-5)


def test_more_is_missing_at_higher_rates_and_one_always_stays(curved: tuple[str, Path, dict]) -> None:
    data, _, result = curved
    curve = result["missing_curve"]
    assert [rate for rate, *_ in by_rate(curve)] == list(RATES)
    hidden = {rate: [row["hidden"] for row in curve["missing"] if row["rate"] == rate] for rate in RATES}
    assert hidden[0.0] == [0.0] and all(len(hidden[rate]) == 2 for rate in RATES[1:])
    for low, high in pairwise(RATES):
        assert max(hidden[low]) < min(hidden[high])
    manifest = open_manifest(data)
    loader = StepLoader(manifest, config(data, Path()).data, "test", 100, shuffle=False)
    (batch,) = next(loader.steps(0)).micro_batches
    kept = {rate: drop_modalities(batch, rate, 1).present_BM for rate in RATES}
    assert hidden[0.4][1] == pytest.approx(1 - float(kept[0.4].sum() / batch.present_BM.sum()))
    for low, high in pairwise(RATES):
        assert not (kept[high] & ~kept[low]).any(), "what is lost at one rate is lost at every higher one"
    assert bool(kept[0.7].any(dim=1).all()) and not torch.equal(kept[0.7], drop_modalities(batch, 0.7, 0).present_BM)


def test_table_and_figure_lie_with_the_run(curved: tuple[str, Path, dict]) -> None:
    _, run, result = curved
    assert json.loads((run / "missing_curve.json").read_text()) == result["missing_curve"]
    assert (run / "figures" / "missing_curve.png").read_bytes()[:4] == b"\x89PNG"


def test_temperatures_are_fitted_on_validation_and_kept(curved: tuple[str, Path, dict]) -> None:
    _, run, result = curved
    assert set(result["temperatures"]) == {"died", "kind", "codes"}
    assert read_temperatures(open_checkpoint(str(run))) == result["temperatures"]
    scaled = result["calibrated"]
    assert scaled["calibrated/test/kind/accuracy"] == result["metrics"]["test/kind/accuracy"]
    assert scaled["calibrated/test/kind/brier"] != result["metrics"]["test/kind/brier"]


def test_which_metric_stands_for_a_run() -> None:
    metrics = {"test/loss": 0.5, "test/accuracy": 0.9, "test/auroc": 0.8, "val/auroc": 0.7}
    assert primary_metric("test", metrics) == "test/accuracy"
    assert primary_metric("test", {**metrics, "test/auprc": 0.1}) == "test/auroc"
    assert primary_metric("test", metrics, "accuracy") == "test/accuracy"
    assert main_metric_of_tasks("test", metrics) == ["test/accuracy"]
    several = {"test/a/auprc": 0.1, "test/a/auroc": 0.6, "test/b/mae": 2.0, "test/b/r2": 0.3, "test/loss": 1.0}
    assert main_metric_of_tasks("test", several) == ["test/a/auroc", "test/b/r2"]
    assert primary_metric("test", {"test/loss": 1.0}) == "test/loss"
    with pytest.raises(ValueError, match="no metric test/f1; there are"):
        primary_metric("test", metrics, "f1")
    with pytest.raises(ValueError, match=r"no metric test/records; there are test/loss$"):
        primary_metric("test", {"test/loss": 1.0, "test/records": 8.0}, "records")
    assert larger_is_better("test/auroc") and not larger_is_better("test/days/mae")
