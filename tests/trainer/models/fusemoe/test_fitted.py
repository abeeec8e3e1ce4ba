"""What a preset chooses, against values worked out by hand from docs/defaults.md."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_shards import Record, TaskSpec, open_manifest
from data_shards.records.statistics import Spread
from tests.trainer.jobs.test_train import FixedContext
from tests.trainer.tiny import Tiny, TinyOptions, config, packed
from trainer.checkpoints.find import open_checkpoint
from trainer.config.preset import FITTED
from trainer.config.recipe import RecipeError, apply_overrides, recipe_of
from trainer.config.run_config import RunConfig, as_recorded
from trainer.jobs.job import run
from trainer.models.fusemoe.fitted import Facts, chosen, fitted

BINARY, NUMBER = TaskSpec("died", "binary"), TaskSpec("days", "regression", unit="days")
WARD = Facts(samples=11_481, labelled=11_481, rarest=448, modalities=6, absent=0.12, quantiles=True, validation=1_923)
WINE = Facts(samples=107, labelled=107, rarest=29, modalities=1, absent=0.0, quantiles=True, validation=38)


def recipe(*overrides: str, **tree: Any) -> RunConfig:
    return recipe_of({"name": "r", "data": {"url": "nowhere"}, "preset": "good", **tree}, overrides, "r", "recipe")


def test_values_of_small_and_larger_data():
    assert chosen(recipe(), WINE, [BINARY]) == {
        "model.dim": 32,
        "model.layers": 1,
        "model.dropout": 0.3,
        "model.modality_dropout": 0.0,
        "model.scale": "quantile",
        "model.series.statistics": "token",
        "model.waveform.statistics": "fine_kernels",
        "model.head.start": "base",
        "model.head.members": 1,
        "model.head.skip": "linear",
        "optim.lr": 0.002,
        "optim.ema": 0.9,  # a third of 14 steps is less than it reaches
        "training.batch_size": 8,  # 107 / 30 is less
        "training.epochs": 143,  # 2000 steps of 14
        "training.eval_every": 67,  # 2002 steps in 30
        "training.early_stopping.metric": "val/brier",
        "training.early_stopping.patience": 10,
    }
    found = chosen(recipe(), WARD, [BINARY])
    assert [found[f"model.{key}"] for key in ("dim", "layers", "dropout", "modality_dropout")] == [64, 2, 0.2, 0.18]
    # 180 steps an epoch; 2000 x root of 1.1481 is 2143
    assert [found[f"training.{key}"] for key in ("batch_size", "epochs", "eval_every")] == [64, 12, "epoch"]
    assert found["training.early_stopping.metric"] == "val/auroc" and found["training.early_stopping.patience"] == 4
    assert found["optim.ema"] == 0.983  # 60 of 180 steps
    coded = replace(WARD, codes=recipe().model.codes.spread_above + 1)  # whose table is spread over ranks
    assert chosen(recipe(), coded, [BINARY])["optim.ema"] == 0
    large = replace(WARD, samples=1_000_000, labelled=1_000_000, rarest=30_000)
    assert chosen(recipe(), large, [BINARY])["optim.ema"] == 0.999
    assert [chosen(recipe(), large, [BINARY])[f"training.{key}"] for key in ("batch_size", "epochs")] == [256, 5]
    assert set(found) == set(FITTED)


@pytest.mark.parametrize(
    "samples, statistics, members", [(None, "fine_kernels", 1), (63.9, "kernels", 4), (64.0, "fine_kernels", 4)]
)
def test_signals_are_counted_finely_where_they_are_long_enough(
    samples: float | None, statistics: str, members: int
) -> None:
    found = chosen(recipe(), replace(WINE, signal=samples), [BINARY])
    assert (found["model.waveform.statistics"], found["model.head.members"]) == (statistics, members)


@pytest.mark.parametrize("dense, statistics", [(0.0, "token"), (63.9, "token"), (64.0, "fine_kernels")])
def test_series_are_laid_on_even_times_where_their_channels_are_read_often(dense: float, statistics: str) -> None:
    assert chosen(recipe(), replace(WARD, dense=dense), [BINARY])["model.series.statistics"] == statistics
    old = replace(WARD, dense=dense, quantiles=False)
    assert chosen(recipe(), old, [BINARY])["model.series.statistics"] == "none"


@pytest.mark.parametrize(
    "facts, tasks, metric",
    [
        (WARD, [NUMBER], "val/loss"),
        (WARD, [BINARY, NUMBER], "val/loss"),
        (replace(WARD, rarest=119), [BINARY], "val/loss"),  # 19.9 of them to be expected
        (replace(WARD, rarest=120), [BINARY], "val/auroc"),
        (replace(WARD, labelled=999), [BINARY], "val/brier"),
        (replace(WARD, labelled=999), [NUMBER], "val/loss"),
        (replace(WARD, labelled=999), [BINARY, NUMBER], "val/loss"),
        (replace(WARD, validation=0), [BINARY], "val/loss"),
        (WARD, [TaskSpec("kind", "multiclass", classes=("u", "v"))], "val/accuracy"),
    ],
)
def test_what_chooses_the_epoch(facts, tasks, metric):
    assert chosen(recipe(), facts, tasks)["training.early_stopping.metric"] == metric


def test_what_is_named_stays_and_lengths_follow_it():
    asked = recipe("training.batch_size=16", model={"dim": 24, "heads": 8, "text": {"heads": 2}})
    assert "model.dim" not in asked.unnamed and "training.batch_size" not in asked.unnamed
    asked = apply_overrides(asked, ["optim.lr=0.5"])
    assert "optim.lr" not in asked.unnamed
    found = fitted(asked, WARD, [BINARY])
    assert found.unnamed == [] and (found.model.dim, found.training.batch_size, found.optim.lr) == (24, 16, 0.5)
    assert found.training.epochs == 3  # of 718 steps each
    assert found.model_copy(update={"preset": "none"}) != asked.model_copy(update={"preset": "none", "unnamed": []})
    assert fitted(recipe("parallel.workers=80", "parallel.expert_parallel=1"), WINE, [BINARY]).training.batch_size == 80
    without = fitted(recipe(), replace(WINE, validation=0, quantiles=False), [BINARY])
    assert without.training.early_stopping.patience is None
    assert (without.model.scale, without.model.series.statistics) == ("standard", "none")


def test_what_cannot_be_learned_from_is_left_to_those_who_refuse_it():
    """No record, or no label of one task of two: the rules divide by neither."""
    assert chosen(recipe(), Facts(0, 0, None, 0, 0.0, True, 0), [BINARY])["training.epochs"] == 150
    found = chosen(recipe(), replace(WARD, labelled=0), [BINARY, NUMBER])
    assert found["training.early_stopping.metric"] == "val/loss"


def test_presets_differ_as_they_say():
    fast, best = (chosen(recipe(preset=name), WARD, [BINARY]) for name in ("fast", "best"))
    assert (fast["model.dim"], fast["model.layers"], fast["training.epochs"]) == (32, 1, 4)
    assert (best["model.dim"], best["training.epochs"]) == (128, 24)
    assert apply_overrides(recipe(), ["preset=none"]).unnamed == [] == recipe(preset="none").unnamed
    assert recipe(job="mope", mope={}).unnamed == []


def test_a_list_of_keys_is_not_given():
    with pytest.raises(RecipeError, match="unnamed is filled in when a recipe is read"):
        recipe(unnamed=["model.dim"])


def training_records() -> list[Record]:
    source = Tiny(TinyOptions())
    every = [record for unit in source.units() for record in source.read(unit, Counter())]
    return [record for record in every if record.splits["default"] == "train"]


def test_facts_are_of_the_training_part(tmp_path):
    data = packed(tmp_path / "data")
    manifest = open_manifest(data)
    statistics, parts = manifest.statistics["default"], manifest.splits["default"]
    facts = Facts.of(manifest.schema, [manifest.schema.task("died")], statistics, parts)
    counts = statistics.tasks["died"].counts
    assert (facts.samples, facts.validation, facts.rarest) == (parts["train"], parts["val"], min(counts))
    assert facts.labelled == sum(counts) <= facts.samples and facts.modalities == 7 and facts.quantiles
    signals = [record.values["ecg"] for record in training_records() if "ecg" in record.values]
    assert facts.signal == pytest.approx(sum(map(len, signals)) / len(signals)) and 15 < facts.signal < 25
    timed = replace(statistics.modalities["ecg"], objects=Spread(9, 2.0, 0.5, 1.0, 3.0, ()))
    twice = replace(statistics, modalities={**statistics.modalities, "ecg": timed})
    assert Facts.of(manifest.schema, [], twice, parts).signal == pytest.approx(facts.signal / 2)
    series = [spec for spec in manifest.schema.modalities if spec.kind == "series"]
    held = [record.values[spec.name] for record in training_records() for spec in series if spec.name in record.values]
    cells = sum(len(spec.channels) for record in training_records() for spec in series if spec.name in record.values)
    assert facts.dense == pytest.approx(sum(map(len, held)) / cells) and facts.dense > 0.5
    plain = replace(manifest.schema, modalities=manifest.schema.modalities[:-1])
    assert Facts.of(plain, [], statistics, parts).signal is None
    present = [statistics.modalities[spec.name].present for spec in manifest.schema.modalities]
    assert facts.absent == pytest.approx(1 - sum(present) / 7 / facts.samples) and 0.2 < facts.absent < 0.4


def test_a_run_that_goes_on_keeps_what_was_chosen():
    before = fitted(recipe(), WARD, [BINARY]).model_dump(mode="json")
    before["model"]["dim"], before["training"]["epochs"] = 40, 7  # as rules of before had them
    before["model"]["head"]["members"] = 4
    kept = as_recorded(recipe(), before)
    assert kept.model.head.members == 4
    del before["model"]["head"]["members"]  # which that version did not know
    again = as_recorded(recipe("optim.lr=0.5"), before)
    assert (again.model.dim, again.training.epochs, again.optim.lr, again.unnamed) == (40, 7, 0.5, [])
    assert again.model.head.members == 1 and as_recorded(recipe(), None).unnamed == list(FITTED)


@pytest.mark.long
def test_a_run_says_what_it_chose_and_goes_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("fleximoe"), "info", lambda text, *values, **more: lines.append(text))
    lines: list[str] = []
    data = packed(tmp_path / "data")
    tree = config(data, tmp_path).model_dump(mode="json") | {"preset": "good", "unnamed": ["optim.lr", "model.dropout"]}
    asked = RunConfig.of(tree)
    whole = run(RunConfig.of(tree | {"name": "whole"}), FixedContext(0, 1))
    (line,) = [line for line in lines if line.startswith("chosen")]
    assert re.fullmatch(r"chosen \(preset=good; .*\): optim.lr=0.002, model.dropout=0.3", line)
    run(asked, FixedContext(0, 1, stop_at=3))
    stored = open_checkpoint(asked.run_dir).meta["config"]
    assert (stored["optim"]["lr"], stored["model"]["dropout"], stored["unnamed"]) == (0.002, 0.3, [])
    lines.clear()
    assert run(asked, FixedContext(0, 1))["metrics"] == whole["metrics"]
    assert not [line for line in lines if line.startswith("chosen")]
