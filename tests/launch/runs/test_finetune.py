"""The verb finetune: it takes recipes of fine-tuning, and says at once what is wrong with their backbone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.errors import UsageError
from launch.runs.train import finetune_recipe
from tests.launch.commands import last_json, python
from tests.trainer.towers import FAMILIES
from tests.trainer.vqa import packed_vqa
from trainer.config.recipe import load_recipe
from trainer.models.job_type import job_type


def test_recipes_of_other_jobs_are_refused() -> None:
    with pytest.raises(UsageError, match="recipe digits has job: fusemoe, which is for train"):
        finetune_recipe("digits", [], False)


def test_settings_that_do_nothing_for_frozen_backbones_are_refused() -> None:
    run = load_recipe("mope_easy_vqa", ["training.activation_checkpointing=true"])
    with pytest.raises(ValueError, match="activation_checkpointing works for job=fusemoe, not for job=mope"):
        job_type(run.job).resolve(run)


def test_a_missing_host_is_found_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mope.host: .*/gone holds no committed checkpoint"):
        finetune_recipe("mope_icu", [f"mope.host={tmp_path}/gone", f"training.storage={tmp_path}"], False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
@pytest.mark.long
def test_finetune_runs_on_ray_and_evaluate_takes_its_adapter(tmp_path: Path) -> None:
    data = packed_vqa(tmp_path)
    towers = [
        f"mope.{what}={json.dumps({'family': family, 'config': FAMILIES[family]})}"
        for what, family in (("image", "vit"), ("text", "bert"))
    ]
    settings = [f"data.url={data}", f"training.storage={tmp_path}/runs", "training.epochs=1", "training.batch_size=16"]
    made = last_json(
        python("-m", "launch", "finetune", "mope_easy_vqa", "name=tuned", "parallel.workers=2", *settings, *towers)
    )
    assert made["status"] == "finished"
    again = last_json(python("-m", "launch", "evaluate", made["adapter"]))
    assert again["metrics"] == pytest.approx(made["metrics"], rel=1e-5)
