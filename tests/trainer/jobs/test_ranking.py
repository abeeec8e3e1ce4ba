"""A run that is continued goes on choosing its best checkpoint by the metric that it has chosen by so far."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.checkpoints.test_outdated import packed_as, rewritten
from tests.trainer.jobs.test_train import job
from tests.trainer.tiny import config
from trainer.checkpoints.find import open_checkpoint
from trainer.config.run_config import RunConfig

WAY_OUT = "keep training.early_stopping.metric=val/loss and training.early_stopping.mode=min"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return packed_as(tmp_path_factory.mktemp("ranking"), {"vector"})


def choosing(data: str, storage: Path, **stopping: Any) -> RunConfig:
    return config(data, storage, training__eval_every=1, training__early_stopping=stopping)


def steps(storage: Path, metric: str) -> dict[int, float]:
    """Step -> value of a metric."""
    lines = [json.loads(line) for line in (storage / "run" / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["metrics"][metric] for line in lines if metric in line.get("metrics", {})}


def test_a_run_that_goes_on_by_another_metric_is_refused(data: str, tmp_path: Path) -> None:
    by_loss = choosing(data, tmp_path, metric="val/loss")
    by_auroc = choosing(data, tmp_path, metric="val/died/auroc")
    job(1, by_loss, stop_at=3)
    before = list(steps(tmp_path, "train/loss"))
    checkpoint = open_checkpoint(by_loss.run_dir)
    assert checkpoint.ranked_by == checkpoint.meta["ranked_by"] == {"metric": "val/loss", "mode": "min"}
    said = rf"run run chose by val/loss \(min\) so far, .* with val/died/auroc \(max\): give .* name, or {WAY_OUT}"
    with pytest.raises(AssertionError, match=said):
        job(1, by_auroc)
    assert list(steps(tmp_path, "train/loss")) == before == [1, 2, 3], "refused before its first step"
    # The mode may be left out or said: it is the same.
    result = job(1, choosing(data, tmp_path, metric="val/loss", mode="min"))
    assert result["step"] == 8 and result["metrics"]["test/records"] == 8


def test_a_checkpoint_of_an_earlier_version_was_ranked_by_its_recipe(data: str, tmp_path: Path) -> None:
    wrong = choosing(data, tmp_path, metric="val/died/auroc")
    job(1, wrong, stop_at=3)
    newest = Path(wrong.run_dir) / "checkpoints" / "step-0000000003"

    def as_before(meta: dict[str, Any]) -> None:
        del meta["ranked_by"]
        meta["config"]["training"]["early_stopping"]["mode"] = "min"  # the default that was

    old = rewritten(open_checkpoint(str(newest)), as_before)
    assert old.ranked_by == {"metric": "val/died/auroc", "mode": "min"}
    said = r"chose by val/died/auroc \(min\) so far, which .* val/died/auroc \(max\): give the run another name"
    with pytest.raises(AssertionError, match=said):
        job(1, wrong)
    rewritten(old, lambda meta: meta["config"]["training"]["early_stopping"].update(mode="max"))
    assert job(1, wrong)["step"] == 8


def test_before_its_first_evaluation_a_run_may_choose_anew(data: str, tmp_path: Path) -> None:
    job(1, choosing(data, tmp_path, metric="val/loss"), stop_at=1)
    by_auroc = choosing(data, tmp_path, metric="val/died/auroc")
    assert open_checkpoint(by_auroc.run_dir).ranked_by is None
    result = job(1, by_auroc)
    seen = steps(tmp_path, "val/died/auroc")
    best = min(seen, key=lambda step: (-seen[step], step))
    assert len(seen) == 8 and result["checkpoint"].endswith(f"step-{best:010d}")
    assert min(seen.values()) < seen[best], "the largest, and not all are the same"
