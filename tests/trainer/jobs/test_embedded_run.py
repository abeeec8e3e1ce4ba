"""Runs on embedded data learn what runs with the frozen encoders inside learn, by the same recipe or a shorter one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_shards import open_manifest, pack
from data_shards.sources.base import SourceOptions
from tests.trainer.inference.embedding import embed
from tests.trainer.jobs.test_pretrained_run import Ward
from tests.trainer.jobs.test_train import job, losses
from tests.trainer.pretrained import save_encoder
from tests.trainer.tiny import config
from trainer.checkpoints.find import open_checkpoint
from trainer.config.errors import RecipeError
from trainer.models.encoders.own.embedded import with_embedded

pytestmark = pytest.mark.together
FAMILIES = {"notes": "bert", "cxr": "vit", "sound": "wav2vec2"}
TOKENS: dict[str, Any] = {"notes": "pooled", "cxr": 4, "sound": 2}
STEPS = {"training__epochs": 50, "training__max_steps": 50, "training__eval_every": 1000, "training__batch_size": 8}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, the same embedded, and the encoders."""
    folder = tmp_path_factory.mktemp("embedded_run")
    pack(Ward(SourceOptions()), str(folder / "data"), chunk_records=4)
    sources = {name: save_encoder(folder / name, family) for name, family in FAMILIES.items()}
    embed(folder / "data", folder / "vectors", sources, TOKENS)
    return folder


def entries(places: Path) -> dict[str, Any]:
    return {name: {"source": str(places / name), "tokens": TOKENS[name]} for name in FAMILIES}


@pytest.mark.long
def test_losses_are_those_of_the_encoder_inside(places: Path, tmp_path: Path) -> None:
    job(1, config(str(places / "data"), tmp_path / "inside", model__encoders=entries(places), **STEPS))
    job(1, config(str(places / "vectors"), tmp_path / "vectors", **STEPS))
    inside, vectors = losses(tmp_path / "inside"), losses(tmp_path / "vectors")
    assert len(inside) == 50 and min(inside.values()) < 0.7 * inside[1], "it learns"
    assert vectors == pytest.approx(inside, rel=1e-5, abs=1e-6)
    recipe = open_checkpoint(str(tmp_path / "vectors" / "run")).meta["config"]["model"]["encoders"]
    assert {name: (one["source"], one["tokens"]) for name, one in recipe.items()} == {
        name: (str(places / name), TOKENS[name]) for name in FAMILIES
    }


def test_a_recipe_may_say_what_the_data_say_and_nothing_else(places: Path, tmp_path: Path) -> None:
    manifest = open_manifest(str(places / "vectors"))
    plain = config(str(places / "vectors"), tmp_path)
    filled = with_embedded(plain, manifest.schema, manifest.embedded)
    said = config(str(places / "vectors"), tmp_path, model__encoders=entries(places))
    assert with_embedded(said, manifest.schema, manifest.embedded).model == filled.model
    assert plain.model.encoders == {}, "the recipe that was given stays"
    raw = open_manifest(str(places / "data"))
    assert with_embedded(plain, raw.schema, raw.embedded) == plain
    for change, problem in (
        (
            {"train": "lora"},
            "model.encoders.cxr.train=lora, and the data hold what encoder [0-9a-f]{12} has said of cxr",
        ),
        ({"tokens": 2}, "model.encoders.cxr.tokens=2, and cxr was embedded with tokens=4: give that, or embed"),
    ):
        own = {**entries(places), "cxr": {**entries(places)["cxr"], **change}}
        with pytest.raises(RecipeError, match=problem):
            with_embedded(
                config(str(places / "vectors"), tmp_path, model__encoders=own), manifest.schema, manifest.embedded
            )
