"""The missing-modality curve and temperatures of a checkpoint, against evaluations made one at a time."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from data_shards import DatasetSchema, ModalitySpec, open_manifest
from data_shards.loading.loader import StepLoader
from tests.trainer.jobs.test_train import job
from tests.trainer.tiny import config, packed
from trainer.checkpoints.evaluation_recipe import evaluation_config
from trainer.checkpoints.find import open_checkpoint
from trainer.evaluation.missing_curve import RATES, STRETCHES, ways_to_hide
from trainer.figures.evaluation import missing_figure
from trainer.metrics.main_metric import by_rate, larger_is_better, main_metric_of_tasks, primary_metric
from trainer.metrics.temperature import read_temperatures
from trainer.models.layers.missing import drop_modalities, keyed_uniform

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


def test_time_is_hidden_too(curved: tuple[str, Path, dict]) -> None:
    """Which hours, and how many events are left, counted by hand from the records of the part."""
    data, _, result = curved
    curve = result["missing_curve"]
    manifest = open_manifest(data)
    loader = StepLoader(manifest, config(data, Path()).data, "test", 100, shuffle=False)
    (batch,) = next(loader.steps(0)).micro_batches
    group = batch.groups["series"]
    horizon_M = torch.tensor([10.0, 5.0, 1, 1, 1, 1, 1])
    pair_O = torch.repeat_interleave(torch.arange(len(group.modality_P)), group.offsets.diff())
    fraction_O = group.times_O / horizon_M[group.modality_P[pair_O]]
    for what, seeds in (("last", 1), ("window", 2)):
        rows = curve[what]
        assert [row["rate"] for row in rows] == [0.0, *(rate for rate in (0.25, 0.5, 0.75) for _ in range(seeds))]
        assert rows[0]["metrics"] == curve["whole"] and rows[0]["hidden"] == 0
        assert rows[-1]["metrics"] != curve["whole"]
    assert [row["hidden"] for row in curve["last"][1:]] == pytest.approx(
        [float((fraction_O >= 1 - share).float().mean()) for share in (0.25, 0.5, 0.75)]
    )
    start_B = keyed_uniform(1, batch.index_B, 1)[:, 0] * 0.5
    start_O = start_B[group.sample_P[pair_O]]
    expected = float(((fraction_O >= start_O) & (fraction_O < start_O + 0.5)).float().mean())
    (half,) = [row["hidden"] for row in curve["window"] if (row["rate"], row["seed"]) == (0.5, 1)]
    assert 0.2 < half == pytest.approx(expected)


def test_a_curve_over_time_has_a_panel_and_older_ones_none(curved: tuple[str, Path, dict]) -> None:
    curve = curved[2]["missing_curve"]
    older = {name: value for name, value in curve.items() if name not in ("last", "window")}
    tasks = len(curve["tasks"])
    assert len(missing_figure({"run": curve}).axes) == 3 * tasks and len(missing_figure({"a": older}).axes) == 2 * tasks
    time = missing_figure({"run": curve, "older": older}).axes[2]
    assert [line.get_xydata()[:, 0].tolist() for line in time.lines] == [[0.0, 0.25, 0.5, 0.75]] * 2
    metric = next(iter(curve["tasks"]))
    assert time.lines[0].get_ydata().tolist() == [row["metrics"][metric] for row in curve["last"]]
    assert by_rate({**curve, "metric": metric}, "window")[1][2:] == (
        min(row["metrics"][metric] for row in curve["window"][1:3]),
        max(row["metrics"][metric] for row in curve["window"][1:3]),
    )


def test_nothing_is_hidden_over_time_where_nothing_has_times() -> None:
    still = DatasetSchema("still", (ModalitySpec("age", "vector", shape=(1,)), ModalitySpec("sex", "codes")))
    assert {way.what for way in ways_to_hide(still, 2)} == {"missing"}
    timed = DatasetSchema("timed", (*still.modalities, ModalitySpec("drugs", "codes", timed=True, horizon=1.0)))
    assert [way.rate for way in ways_to_hide(timed, 2) if way.what == "last"] == list(STRETCHES[1:])
