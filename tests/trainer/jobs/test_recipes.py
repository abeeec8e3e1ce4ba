"""The recipe of every importer takes a few steps on small data in the official layout; icu_mimic4 on two ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards import DataConfig, StepLoader, create_source, open_manifest, pack
from data_shards.sources.mimic4.recordings import LEADS
from tests.data_shards.sources.importers import HOURS, PARTS, RECIPES, STAYS, ecg_counts, grey, note
from tests.data_shards.sources.mimic4.build import OFFICIAL_LEADS
from tests.ranks import run_ranks
from tests.trainer.jobs.test_train import FixedContext, job
from tests.trainer.pretrained import save_encoder
from trainer.config.recipe import load_recipe
from trainer.config.run_config import RunConfig
from trainer.jobs.job import run

# Smaller, so that it is quick; what decides whether recipe and data fit is as shipped
SMALL = (
    "model.dim=16", "model.heads=2", "model.layers=1", "model.moe.experts=4", "model.moe.top_k=2",
    "model.moe.hidden=16", "training.max_steps=2", "training.batch_size=8", "training.log_every=1",
    "tracking.mlflow=false",
)  # fmt: skip


ALONE = ("parallel.workers=1", "parallel.expert_parallel=1")


def packed(recipe: str, folder: Path) -> str:
    source, lay = RECIPES[recipe]
    pack(create_source(source, lay(folder / recipe)), str(folder / f"{recipe}-packed"), workers=1)
    return str(folder / f"{recipe}-packed")


def small(recipe: str, data: str, storage: Path, *changes: str) -> RunConfig:
    recipe, _, variant = recipe.partition(":")
    own = (f"data.url={data}", f"training.storage={storage}", f"name={recipe}{variant}", *SMALL, *changes)
    return load_recipe(recipe, list(own))


def _in_turn(rank: int, world: int, trees: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [run(RunConfig.of(tree), FixedContext(rank, world)) for tree in trees]


@pytest.fixture(scope="module")
def mimic(tmp_path_factory: pytest.TempPathFactory) -> str:
    return packed("icu_mimic4", tmp_path_factory.mktemp("mimic"))


@pytest.mark.slow
def test_every_importer_has_a_recipe_that_trains(mimic: str, tmp_path: Path) -> None:
    recipes = [name for name in RECIPES if name != "icu_mimic4"]
    runs = [small(name, packed(name, tmp_path), tmp_path, *ALONE) for name in recipes]
    recipes.append("icu_mimic4_pretrained")
    encoders = [
        f"model.encoders.notes.source={save_encoder(tmp_path / 'bert', 'bert')}",
        f"model.encoders.cxr.source={save_encoder(tmp_path / 'dinov2', 'dinov2', image_size=32)}",
        "model.encoders.notes.max_tokens=16",
    ]
    runs.append(small("icu_mimic4_pretrained", mimic, tmp_path, *ALONE, *encoders))
    trees = [run.model_dump(mode="json") for run in runs]
    for name, result in zip(recipes, run_ranks(_in_turn, 1, trees, timeout_s=600)[0], strict=True):
        assert (result["status"], result["step"]) == ("finished", 2), name
        assert np.isfinite(result["metrics"]["test/loss"]), name


def test_icu_mimic4_end_to_end_on_two_ranks(mimic: str, tmp_path: Path) -> None:
    result = job(2, small("icu_mimic4", mimic, tmp_path))
    assert (result["status"], result["step"]) == ("finished", 2)
    assert np.isfinite(result["metrics"]["test/loss"]) and "test/auroc" in result["metrics"]


@pytest.mark.parametrize("rank", [0, 1])
def test_what_the_ranks_of_icu_mimic4_get_is_what_was_written(mimic: str, rank: int) -> None:
    manifest = open_manifest(mimic)
    config = DataConfig(url=mimic)
    numbers, seen = manifest.schema.numbers, HOURS[:-1]
    steps = [list(StepLoader(manifest, config, "train", 6, rank=r, world=2).steps(0)) for r in (0, 1)]
    keys = [key for own in steps for step in own for batch in step.micro_batches for key in batch.keys]
    assert sorted(keys) == sorted(f"stay-3{stay}" for stay in range(STAYS) if PARTS[stay % 6] == "train")
    in_order = [OFFICIAL_LEADS.index(lead) for lead in LEADS]
    objects = 0
    for step in steps[rank]:
        for batch in step.micro_batches:
            texts, pictures, ecgs = (
                batch.groups[name] for name in ("timed_text", "timed_image/1x32x32", "timed_waveform/12")
            )
            for row, key in enumerate(batch.keys):
                stay = int(key.removeprefix("stay-3"))
                own = [p for p in range(texts.pairs) if texts.sample_P[p] == row]
                assert [float(texts.times_P[p]) for p in own] == list(seen)
                said = [bytes(texts.bytes_O[texts.offsets[p] : texts.offsets[p + 1]].numpy()).decode() for p in own]
                assert said == [note(stay, number) for number in range(3)]
                own = [p for p in range(pictures.pairs) if pictures.sample_P[p] == row]
                greys = [round(float(pictures.values_PCHW[p].float().mean())) for p in own]
                assert greys == ([] if stay == 0 else pytest.approx([grey(stay, n) for n in range(3)], abs=1))
                assert [float(pictures.times_P[p]) for p in own] == ([] if stay == 0 else list(seen))
                own = [p for p in range(ecgs.pairs) if ecgs.sample_P[p] == row]
                assert [float(ecgs.times_P[p]) for p in own] == ([] if stay == 0 else list(seen))
                for number, p in enumerate(own):
                    found = ecgs.values_OC[ecgs.offsets[p] : ecgs.offsets[p + 1]].numpy()
                    counts = ecg_counts(stay, number)[:, in_order]
                    means = counts.reshape(-1, 5, 12).mean(axis=1) / 200  # 500 to 100 samples a second
                    np.testing.assert_allclose(found, means, rtol=1e-6)
                objects += len(said) + len(greys) + len(own)
                assert batch.groups["timed_text"].modality_P.unique().tolist() == [numbers["notes"]]
    assert objects > 0
