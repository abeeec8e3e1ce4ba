"""A mixture of data sets through the whole job: stopped and continued to the same bits, moved, evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_shards import StepLoader, create_source, open_data, open_manifest, pack
from tests.data_shards.build import make_set
from tests.trainer.jobs.test_train import STEADY, FixedContext, job, losses, weights
from tests.trainer.tiny import config, packed, predictor_of
from trainer.checkpoints.evaluation_recipe import evaluation_config
from trainer.checkpoints.find import open_checkpoint
from trainer.checkpoints.pieces import CheckpointError
from trainer.config.recipe import apply_overrides, load_recipe
from trainer.config.run_config import RunConfig
from trainer.inference.export import export_model
from trainer.inference.exported import load_model
from trainer.inference.request import Request, choose_data
from trainer.jobs.job import run
from trainer.metrics.main_metric import task_curves
from trainer.metrics.prediction_table import read_predictions


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two data sets with nothing in common; the second one's records are seen twice as often."""
    folder = tmp_path_factory.mktemp("mixture")
    return {
        "tiny": {"url": packed(folder / "tiny")},
        "other": {"url": make_set(folder / "other", 40).url, "tasks": ["ward"], "weight": 2.0},
    }


def mixed(mixture: dict[str, Any], storage: Path, **changes: Any) -> RunConfig:
    tree = config("replaced", storage, model__image__patch=1, **changes).model_dump(
        mode="json"
    )  # the tiny run, with two data sets instead of one
    return RunConfig.model_validate({**tree, "data": {"mixture": mixture}})


@pytest.mark.long
def test_a_stopped_mixture_continues_to_the_same_bits_and_evaluates(mixture: dict[str, Any], tmp_path: Path) -> None:
    layout: dict[str, Any] = {"parallel__workers": 2, "parallel__expert_parallel": 2, "model__modality_dropout": 0.3}
    whole = job(2, mixed(mixture, tmp_path / "whole", **layout))
    broken = mixed(mixture, tmp_path / "broken", **layout)
    assert job(2, broken, stop_at=3)["status"] == "stopped"
    last = job(2, broken)
    assert last["status"] == "finished" and last["metrics"] == whole["metrics"] and last["samples"] == whole["samples"]
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(np.array_equal(expected[name], got[name]) for name in expected)
    for name in ("test/tiny-died/accuracy", "test/tiny-days/mae", "test/other-ward/accuracy"):
        assert name in whole["metrics"]
    assert not any("other-death" in name for name in whole["metrics"])
    again = run(
        evaluation_config(open_checkpoint(broken.run_dir), missing_curve=True, missing_seeds=1), FixedContext(0, 1)
    )
    assert again["metrics"] == pytest.approx(whole["metrics"], abs=1e-5)
    curves = {curve["metric"]: curve for curve in task_curves(again["missing_curve"])}
    assert {"test/tiny-days/r2", "test/other-ward/accuracy"} <= set(curves)
    removed = {row["modality"] for row in curves["test/other-ward/accuracy"]["without"]}
    assert removed == {f"other-{name}" for name in open_manifest(mixture["other"]["url"]).schema.modality_names}
    rows = {row["modality"]: row["metrics"] for row in again["missing_curve"]["without"]}
    assert rows["tiny-scan"]["test/other-ward/brier"] == again["metrics"]["test/other-ward/brier"]
    assert rows["tiny-scan"]["test/loss"] != again["metrics"]["test/loss"]
    assert (Path(broken.run_dir) / "figures" / "missing_curve.png").exists()
    with pytest.raises(CheckpointError, match=r"instead of --data give data.mixture.NAME.url=... for tiny or other"):
        evaluation_config(open_checkpoint(broken.run_dir), "elsewhere")


def test_a_mixture_continues_at_another_world_size_and_not_with_other_weights(
    mixture: dict[str, Any], tmp_path: Path
) -> None:
    short = {**STEADY, "training__epochs": 1}
    run(mixed(mixture, tmp_path / "whole", **short), FixedContext(0, 1))
    saved = {**short, "parallel__workers": 2, "parallel__expert_parallel": 2}
    job(2, mixed(mixture, tmp_path / "moved", **saved), stop_at=3)
    alone = mixed(mixture, tmp_path / "moved", **short)
    heavier = {**mixture, "tiny": {**mixture["tiny"], "weight": 3.0}}
    with pytest.raises(CheckpointError, match="the data changed; give the run another name"):
        run(mixed(heavier, tmp_path / "moved", **short), FixedContext(0, 1))
    run(alone, FixedContext(0, 1))
    expected, got = losses(tmp_path / "whole"), losses(tmp_path / "moved")
    assert expected.keys() == got.keys()
    assert [got[step] for step in expected] == pytest.approx(list(expected.values()), rel=2e-4)


def test_a_record_has_tokens_of_its_own_data_set_only(mixture: dict[str, Any], tmp_path: Path) -> None:
    run_config = mixed(mixture, tmp_path, **STEADY, training__max_steps=2)
    run(run_config, FixedContext(0, 1))
    export_model(run_config.run_dir, str(tmp_path / "export"))
    model, data = load_model(str(tmp_path / "export")), open_data(run_config.data)
    batch = next(StepLoader(data, run_config.data, "train", 16).steps(0)).micro_batches[0]
    assert batch.known_BM is not None
    with torch.no_grad():
        x_ND, layout = model.embed(batch)
        assert batch.known_BM[layout.sample_N, layout.modality_N].all() and len(x_ND) == len(layout.sample_N)
        logits = model(batch).logits
    assert set(logits) == {"tiny-died", "tiny-kind", "tiny-codes", "tiny-days", "other-ward"}


def test_a_mixture_predicts_one_data_set_at_a_time(mixture: dict[str, Any], tmp_path: Path) -> None:
    run_config = mixed(mixture, tmp_path, **STEADY, training__max_steps=2)
    run(run_config, FixedContext(0, 1))
    checkpoint = open_checkpoint(run_config.run_dir)
    recipe = evaluation_config(checkpoint)
    with pytest.raises(CheckpointError, match=r"give --data .*tiny \(tiny\) or --data .*other \(other\)"):
        choose_data(recipe, checkpoint, None)
    other = mixture["other"]["url"]
    chosen, member = choose_data(recipe, checkpoint, other)
    assert member == "other" and chosen.data.url == other and not chosen.data.mixture
    predictor = predictor_of(Request(chosen, "test", member, explain=True))
    (table,) = [predictor(stretch)[0] for stretch in predictor.stretches()]
    names = predictor.manifest.schema.modality_names
    assert {name.split(".")[0] for name in table.column_names} == {"record", "key", "other-ward", "expert_share"}
    assert list(table["other-ward.modality_share"][0].as_py()) == list(names)
    assert table["key"][0].as_py().startswith("other/")

    # The same records read through the mixture, whose numbers start after those of its first data set.
    _, whole = read_predictions(tmp_path / "run" / "predictions" / "test.parquet")
    first = open_data(run_config.data).members[0].manifest.records  # type: ignore[union-attr]
    rows = {int(number) - first: row for row, number in enumerate(whole.index_B)}
    mine = [rows[number] for number in table["record"].to_pylist()]
    np.testing.assert_allclose(
        np.array(table["other-ward.logits"].to_pylist()), whole.logits["other-ward"][mine], rtol=1e-4, atol=1e-5
    )
    wards = torch.tensor(table["other-ward.target"].to_pylist(), dtype=torch.float32)
    torch.testing.assert_close(wards, whole.targets["other-ward"][mine, 0])


def test_data_for_a_mixture_must_fit_one_of_its_data_sets(mixture: dict[str, Any], tmp_path: Path) -> None:
    twice = {**mixture, "again": {"url": packed(tmp_path / "again"), "tasks": ["kind"]}}
    run_config = mixed(twice, tmp_path, **STEADY, training__max_steps=1)
    run(run_config, FixedContext(0, 1))
    checkpoint, new = open_checkpoint(run_config.run_dir), packed(tmp_path / "new")
    recipe = evaluation_config(checkpoint)
    assert choose_data(recipe, checkpoint, mixture["tiny"]["url"])[1] == "tiny"
    with pytest.raises(CheckpointError, match=r"has the modalities of tiny and of again: say which .*tiny.url="):
        choose_data(recipe, checkpoint, new)
    named = apply_overrides(recipe, [f"data.mixture.again.url={new}"])
    assert choose_data(named, checkpoint, new)[1] == "again"
    pack(create_source("synthetic", {"records": 8, "modalities": "vector:1"}), str(tmp_path / "strange"))
    with pytest.raises(CheckpointError, match="fits no data set of the mixture"):
        choose_data(recipe, checkpoint, str(tmp_path / "strange"))


def test_the_shipped_recipe_names_both_data_sets() -> None:
    recipe = load_recipe("mixture", ["data.mixture.made_up.weight=0.5"])
    assert list(recipe.data.mixture) == ["digits", "made_up"] and recipe.data.mixture["made_up"].weight == 0.5
    one = load_recipe("mixture", ["data.mixture={}", "data.url=data/digits"])
    assert one.data.url == "data/digits" and not one.data.mixture
