"""Metrics in which each record counts once, by hand and against scikit-learn; predictions of moments and their file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from data_shards import TaskSpec
from tests.ranks import run_ranks
from trainer.metrics.by_record import metrics_by_record
from trainer.metrics.main_metric import choosing_mode, larger_is_better
from trainer.metrics.prediction_table import predictions_table, read_predictions, write_predictions
from trainer.metrics.predictions import PredictionCollector, Predictions
from trainer.metrics.scores import part_metrics

NAN = torch.nan
SEPSIS = TaskSpec("sepsis", "binary", timed=True)
REST = TaskSpec("rest", "regression", unit="hours", timed=True)
# Record 3 has four moments, 5 one, 8 two and 9 two, of which none is labelled.
INDEX_B = torch.tensor([3, 3, 3, 3, 5, 8, 8, 9, 9])
MOMENT_B = torch.tensor([1.0, 2.0, 3.0, 4.0, NAN, 0.5, 7.0, 1.0, 2.0])
SCORE_B = torch.tensor([-3.0, -1.0, 9.0, -2.0, 2.0, -4.0, 1.0, 5.0, 5.0])
TRUTH_B = torch.tensor([0.0, 0.0, NAN, 1.0, 0.0, 0.0, 1.0, NAN, NAN])


def test_binary_by_hand() -> None:
    got = metrics_by_record(SEPSIS, SCORE_B[:, None], TRUTH_B[:, None], INDEX_B)
    # Largest labelled scores -1, 2, 1 of records that are positive, negative, positive: the negative is above both.
    assert got["auroc_by_record"] == 0.0
    assert got["auprc_by_record"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    # 2 of 3, 0 of 1 and 2 of 2 moments are right.
    assert got["accuracy_by_record"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    p = SCORE_B.double().sigmoid()
    each = [(p[0] ** 2 + p[1] ** 2 + (1 - p[3]) ** 2) / 3, p[4] ** 2, (p[5] ** 2 + (1 - p[6]) ** 2) / 2]
    assert got["brier_by_record"] == pytest.approx(float(sum(each) / 3))
    assert set(got) == {"auroc_by_record", "auprc_by_record", "accuracy_by_record", "brier_by_record"}


def test_regression_by_hand() -> None:
    value_B, target_B = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([1.0, 0.0, NAN, 4.0])
    got = metrics_by_record(REST, value_B[:, None], target_B[:, None], torch.tensor([0, 0, 0, 7]))
    assert got["mae_by_record"] == pytest.approx((1 + 6) / 2)
    assert got["rmse_by_record"] == pytest.approx(np.sqrt((2 + 36) / 2))
    wide = TaskSpec("rest", "regression", dim=2)
    got = metrics_by_record(wide, torch.zeros(3, 2), torch.tensor([[1.0, 3.0], [NAN, 4.0], [5.0, NAN]]), INDEX_B[3:6])
    assert got["mae_by_record"] == pytest.approx((2 + 4 + 5) / 3)


def test_labels_and_classes_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    index = np.sort(rng.integers(0, 40, 300))
    logits, truth = rng.normal(size=(300, 3)), (rng.random((300, 3)) < 0.1).astype(np.float64)
    task = TaskSpec("codes", "multilabel", classes=("p", "q", "r"))
    got = metrics_by_record(task, torch.tensor(logits), torch.tensor(truth), torch.tensor(index))
    rows = [np.flatnonzero(index == number) for number in np.unique(index)]
    areas = [
        reference.roc_auc_score([truth[own, c].max() for own in rows], [logits[own, c].max() for own in rows])
        for c in range(3)
    ]
    assert got["auroc_by_record"] == pytest.approx(np.mean(areas))
    task = TaskSpec("kind", "multiclass", classes=("u", "v", "w"))
    label = rng.integers(0, 3, 300)
    got = metrics_by_record(task, torch.tensor(logits), torch.tensor(label).double()[:, None], torch.tensor(index))
    right = logits.argmax(1) == label
    assert got["accuracy_by_record"] == pytest.approx(np.mean([right[own].mean() for own in rows]))
    assert set(got) == {"accuracy_by_record", "brier_by_record"}


def test_what_labels_do_not_define_is_left_out() -> None:
    assert metrics_by_record(SEPSIS, SCORE_B[:, None], torch.full((9, 1), NAN), INDEX_B) == {}
    got = metrics_by_record(SEPSIS, SCORE_B[:, None], torch.zeros(9, 1), INDEX_B)
    assert set(got) == {"accuracy_by_record", "brier_by_record"}
    survival = TaskSpec("left", "survival", edges=(1.0, 2.0))
    assert metrics_by_record(survival, torch.zeros(9, 2), torch.ones(9, 2), INDEX_B) == {}


def test_a_record_of_a_thousand_moments_counts_once() -> None:
    """999 moments of one record that are right, and one of another that is wrong."""
    index_B = torch.tensor([0] * 999 + [1])
    logits, target = torch.full((1000, 1), 3.0), torch.cat([torch.ones(999, 1), torch.zeros(1, 1)])
    found = part_metrics("test", [SEPSIS], predictions(index_B, torch.arange(1000.0), logits, target))
    assert found["test/accuracy"] == pytest.approx(0.999) and found["test/accuracy_by_record"] == 0.5


def predictions(
    index_B: torch.Tensor, moment_B: torch.Tensor | None, logits: torch.Tensor, target: torch.Tensor
) -> Predictions:
    return Predictions(index_B, {"sepsis": logits}, {"sepsis": target}, moment_B=moment_B)


def test_records_that_are_seen_whole_have_the_usual_metrics_only() -> None:
    logits, target = SCORE_B[:, None], TRUTH_B[:, None]
    whole = part_metrics("test", [SEPSIS], predictions(torch.arange(9), None, logits, target))
    assert whole and not any(name.endswith("_by_record") for name in whole)
    # Of a mixture: this task's own data set has no moments, another one's has.
    mixed = predictions(INDEX_B, torch.where(TRUTH_B.isnan(), 1.0, NAN), logits, target)
    assert part_metrics("test", [SEPSIS], mixed) == whole


def test_names_have_the_direction_of_what_they_are_about() -> None:
    assert larger_is_better("test/auroc_by_record") and not larger_is_better("test/sepsis/brier_by_record")
    assert not larger_is_better("test/loss_by_record")
    assert choosing_mode("val/auprc_by_record", None, "k.") == "max"
    with pytest.raises(ValueError, match="would choose the worst model by val/rmse_by_record"):
        choosing_mode("val/rmse_by_record", "max", "k.")
    with pytest.raises(ValueError, match="counts records"):
        choosing_mode("val/moments", "max", "k.")


def test_a_row_for_each_moment_survives_a_file(tmp_path: Path) -> None:
    said = predictions(INDEX_B, MOMENT_B, SCORE_B[:, None], TRUTH_B[:, None])
    rows = predictions_table([SEPSIS], said, [f"k{n}" for n in INDEX_B.tolist()]).to_pylist()
    assert [(row["record"], row["key"], row["moment"]) for row in rows[3:6]] == [
        (3, "k3", 4.0),
        (5, "k5", None),
        (8, "k8", 0.5),
    ]
    assert list(rows[0])[:3] == ["record", "key", "moment"]
    write_predictions(tmp_path / "p.parquet", [SEPSIS], said)
    _, again = read_predictions(tmp_path / "p.parquet")
    assert again.moment_B is not None
    torch.testing.assert_close(again.moment_B, MOMENT_B, equal_nan=True)
    assert again.records == 4 and len(again) == 9
    whole = predictions(torch.tensor([1, 2]), None, torch.zeros(2, 1), torch.zeros(2, 1))
    write_predictions(tmp_path / "w.parquet", [SEPSIS], whole)
    assert "moment" not in predictions_table([SEPSIS], whole).column_names
    assert read_predictions(tmp_path / "w.parquet")[1].moment_B is None


def _collect(rank: int, world: int) -> None:
    """Moments come to the first rank in an order that says nothing."""
    order = torch.randperm(len(INDEX_B), generator=torch.Generator().manual_seed(0))[rank::world]
    collector = PredictionCollector([SEPSIS])
    for one in order.split(2):
        collector.add(INDEX_B[one], MOMENT_B[one], {"sepsis": SCORE_B[one, None]}, {"sepsis": TRUTH_B[one, None]})
    found = collector.to_first()
    if rank:
        assert found is None
        return
    assert found is not None and found.moment_B is not None
    assert torch.equal(found.index_B, INDEX_B)
    torch.testing.assert_close(found.moment_B, MOMENT_B, equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(found.logits["sepsis"][:, 0][:7], SCORE_B[:7], rtol=0, atol=0)
    torch.testing.assert_close(found.targets["sepsis"][:, 0], TRUTH_B, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("world", [1, 3])
def test_moments_of_all_ranks_come_in_the_order_of_records_and_times(world: int) -> None:
    run_ranks(_collect, world)
