"""Experts are drawn where a run begins, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from parallel.moe.experts import Experts
from tests.ranks import run_ranks
from tests.trainer.jobs.test_train import FixedContext, losses
from tests.trainer.tiny import config, packed
from trainer.checkpoints.evaluation_recipe import evaluation_config
from trainer.checkpoints.find import committed_paths, open_checkpoint
from trainer.config.run_config import RunConfig
from trainer.inference.export import checkpoint_model
from trainer.jobs.job import run


def _counted(rank: int, world: int, tree: dict[str, Any], stop_at: int | None) -> tuple[dict[str, Any], int]:
    with mock.patch.object(Experts, "draw", autospec=True, side_effect=Experts.draw) as draw:
        result = run(RunConfig.of(tree), FixedContext(rank, world, stop_at))
    return result, draw.call_count


def counted(run_config: RunConfig, stop_at: int | None = None, world: int = 2) -> tuple[dict[str, Any], int]:
    """(rank 0's result, layers of which a rank has drawn experts, the most of any rank)."""
    found = run_ranks(_counted, world, run_config.model_dump(mode="json"), stop_at)
    return found[0][0], max(count for _, count in found)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return packed(tmp_path_factory.mktemp("tiny") / "data")


@pytest.mark.long
def test_a_run_that_goes_on_and_an_evaluation_draw_no_expert(data: str, tmp_path: Path) -> None:
    layout = {"parallel__workers": 2, "parallel__expert_parallel": 2}
    whole, drawn = counted(config(data, tmp_path / "whole", **layout))
    assert drawn > 0
    broken = config(data, tmp_path / "broken", **layout)
    assert counted(broken, stop_at=3)[1] == drawn
    last, again = counted(broken)
    assert again == 0
    assert last["metrics"] == whole["metrics"] and losses(tmp_path / "broken") == losses(tmp_path / "whole")
    checkpoint = open_checkpoint(last["checkpoint"])
    evaluated, count = counted(evaluation_config(checkpoint))
    assert count == 0 and evaluated["metrics"] == last["metrics"]
    with mock.patch.object(Experts, "draw", side_effect=AssertionError("drawn")):
        model = checkpoint_model(checkpoint)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_run_whose_checkpoints_are_all_damaged_begins_like_a_new_one(data: str, tmp_path: Path) -> None:
    whole, drawn = counted(config(data, tmp_path / "whole"), world=1)
    broken = config(data, tmp_path / "broken")
    counted(broken, stop_at=3, world=1)
    for path in committed_paths(broken.run_dir):
        for piece in Path(path).glob("*.safetensors"):
            piece.write_bytes(piece.read_bytes()[:-4])
    last, again = counted(broken, world=1)
    assert again == drawn and last["metrics"] == whole["metrics"]
    assert torch.tensor(list(last["metrics"].values())).isfinite().all()
