"""Labels at moments through whole jobs: each moment once, scores over moments and records, and no way to look ahead."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from data_shards import DatasetSchema, ModalitySpec, Objects, Record, Series, TaskSpec, pack
from tests.data_shards.build import ListSource
from tests.data_shards.moments import make_moments, names
from tests.trainer.jobs.test_train import FixedContext, job, losses
from tests.trainer.tiny import config, predictor_of
from trainer.checkpoints.evaluation_recipe import evaluation_config
from trainer.checkpoints.find import open_checkpoint
from trainer.inference.request import Request
from trainer.jobs.job import run
from trainer.metrics.prediction_table import read_predictions
from trainer.training.record_trace import delivered

RECORDS = 40
STEADY: dict[str, Any] = {
    "model__dropout": 0.0,
    "model__moe__noise": 0.0,
    "training__batch_size": 48,
    "training__trace_records": True,
    "training__early_stopping": {"metric": "val/sepsis/auroc_by_record"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_moments(tmp_path_factory.mktemp("moments"), RECORDS).url


@pytest.mark.long
def test_a_run_of_moments_stopped_and_moved_sees_each_once_and_scores_both_ways(data: str, tmp_path: Path) -> None:
    whole, train, test = config(data, tmp_path / "whole", **STEADY), names(RECORDS), names(RECORDS, "test")
    first = job(1, whole)
    moved = config(data, tmp_path / "moved", **STEADY, parallel__workers=3)
    job(2, config(data, tmp_path / "moved", **STEADY, parallel__workers=2), stop_at=3)
    last = job(3, moved)
    assert (last["status"], last["samples"]) == ("finished", 2 * len(train))
    assert delivered(moved.run_dir) == {epoch: Counter(train) for epoch in range(2)}
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    assert first["metrics"] == pytest.approx(last["metrics"], rel=2e-3, abs=2e-3)
    assert last["metrics"]["test/records"] == 8 and last["metrics"]["test/moments"] == len(test)
    assert {"test/loss_by_record", "test/rest/mae_by_record", "test/died/accuracy_by_record"} <= set(last["metrics"])
    evaluated = run(evaluation_config(open_checkpoint(whole.run_dir)), FixedContext(0, 1))
    assert evaluated["samples"] == len(test) and evaluated["metrics"] == pytest.approx(first["metrics"], abs=1e-4)
    # What `predict` says of each moment is what the run kept of it.
    (kept,) = (tmp_path / "whole").rglob("predictions/test.parquet")
    _, own = read_predictions(kept)
    asked = evaluation_config(open_checkpoint(whole.run_dir))
    predictor = predictor_of(Request(asked, "test"))
    table = pa.concat_tables([predictor(stretch)[0] for stretch in predictor.stretches()])
    found = [f"{row['key']}@{np.float32(row['moment'])}" for row in table.select(["key", "moment"]).to_pylist()]
    assert found == test and own.moment_B is not None and own.moment_B.tolist() == table["moment"].to_pylist()
    assert np.allclose(own.logits["sepsis"][:, 0], table["sepsis.logits"].to_numpy(), atol=1e-4)


# Whether looking ahead would pay: the label of a moment is given away by an object, and only when it stands matters.

HOUR = {"time_unit": "hours", "horizon": 4.0}
GIVEN = DatasetSchema(
    "given",
    (
        ModalitySpec("hint", "series", channels=("x",), **HOUR),  # type: ignore[arg-type]
        ModalitySpec("answer", "vector", shape=(1,), timed=True, max_objects=1, **HOUR),  # type: ignore[arg-type]
    ),
    (TaskSpec("label", "binary", timed=True, time_unit="hours"),),
)


def giving(shift: float | None) -> list[Record]:
    """Five moments a record, labels without any connection; a weak hint before each, and the answer `shift` away."""
    records = []
    for number in range(160):
        rng = np.random.default_rng((3, number))
        moments = np.arange(1, 6, dtype=np.float32) * 10
        label = rng.integers(0, 2, 5).astype(np.float32)
        hint = Series(moments - 1, np.zeros(5, int), (rng.normal(size=5) + label).astype(np.float32))
        values: dict[str, Any] = {"hint": hint}
        if shift is not None:
            values["answer"] = Objects(moments + np.float32(shift), [np.float32([2 * own - 1]) for own in label])
        part = "test" if number % 4 == 3 else "val" if number % 8 == 2 else "train"
        records.append(Record(f"r{number:03d}", values, {"label": label}, {"default": part}, moments=moments))
    return records


def score(folder: Path, shift: float | None) -> tuple[float, float]:
    """AUROC of a run on such records, over moments and of records' largest."""
    pack(ListSource(GIVEN, giving(shift)), str(folder / "data"))
    torch.manual_seed(0)
    metrics = job(1, config(str(folder / "data"), folder, training__epochs=4, training__batch_size=20))["metrics"]
    return metrics["test/auroc"], metrics["test/auroc_by_record"]


@pytest.mark.long
def test_an_answer_after_the_moment_is_worth_nothing_and_one_before_it_everything(tmp_path: Path) -> None:
    """The hint alone can reach 0.76: chance that a draw of N(1, 1) is above one of N(0, 1)."""
    without, after, before = (score(tmp_path / name, at) for name, at in (("w", None), ("a", 0.01), ("b", -0.01)))
    assert 0.6 < without[0] < 0.8
    assert after[0] < without[0] + 0.03
    assert before[0] > 0.95
