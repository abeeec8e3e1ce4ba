"""The plan of jobs with frozen backbones, against real models; and what is said where a backbone is not there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from data_shards import DatasetSchema, ModalitySpec, TaskSpec, open_manifest
from launch.cli import app
from launch.plan.replicated import plan_replicated
from launch.plan.statistics import stated_statistics
from tests.ranks import run_ranks
from tests.saved_activations import saved_bytes
from tests.trainer.models.mope.host.test_model import batch as host_batch
from tests.trainer.models.mope.host.test_model import prompted, tiny_records
from tests.trainer.models.mope.towers.test_segmentation import segmenter, squares
from tests.trainer.tiny import SCHEMA as TINY
from tests.trainer.towers import SCHEMA, batch
from tests.trainer.training.test_loop import Rank
from tests.trainer.vqa import packed_vqa, recipe
from trainer.config.mope import MopeConfig
from trainer.config.run_config import RunConfig
from trainer.models.job_type import job_type
from trainer.models.mope.host.activations import kept_elements as host_elements
from trainer.models.mope.towers.activations import kept_elements as tower_elements
from trainer.models.mope.towers.model import TowerModel
from trainer.session import build_session
from trainer.worker.devices import find_device


@pytest.fixture
def films(tmp_path: Path) -> list[str]:
    """Configurations of Swin-B and BERT-base without weights, and a schema of pictures with 23 genres."""
    swin = {"image_size": 224, "embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 7}
    words = []
    for what, facts in (("image", {"model_type": "swin", **swin}), ("text", {"model_type": "bert"})):
        (tmp_path / what).mkdir()
        (tmp_path / what / "config.json").write_text(json.dumps(facts))
        words.append(f"mope.{what}.source={tmp_path / what}")
    picture = ModalitySpec("image", "image", shape=(3, 224, 224), dtype="uint8")
    genres = TaskSpec("genres", "multilabel", classes=tuple(f"g{i}" for i in range(23)))
    schema = DatasetSchema("films", (picture, ModalitySpec("text", "text", max_length=600)), (genres,))
    (tmp_path / "schema.json").write_text(schema.to_json())
    return ["plan", "mope_towers", *words, "--schema", str(tmp_path / "schema.json"), "--gpu"]


def test_the_published_size_is_planned_from_configurations_alone(films: list[str]) -> None:
    answer = CliRunner().invoke(app, [*films, "h100"], catch_exceptions=False)
    result = json.loads(answer.stdout.splitlines()[-1])
    assert result["parameters"]["trained"] == 1_544_031 and result["parameters"]["frozen"] == 196_225_464
    assert "1,544,031 trained parameters, 0.787 % of 196,225,464 frozen ones" in answer.stderr
    assert result["bytes"]["frozen_parameters"] == 4 * 196_225_464 and result["fits"]
    small = CliRunner().invoke(app, [*films, "l4", "training.batch_size=4096"], catch_exceptions=False)
    assert not json.loads(small.stdout.splitlines()[-1])["fits"]
    assert "does not fit on 1 x l4" in small.stderr and "raise training.accumulation or --gpus" in small.stderr


def test_towers_that_are_not_there_are_named(films: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source, sentence in (
        ("/nowhere/gone", "tower image: folder .*/gone does not exist"),
        ("nobody/nothing", "'nobody/nothing' is not a folder .* is not in the local cache"),
    ):
        answer = CliRunner().invoke(app, [*films, "h100", f"mope.image.source={source}"])
        with pytest.raises(ValueError, match=sentence):
            raise answer.exception  # type: ignore[misc]


def _occupied(rank: int, world: int, tree: dict[str, Any]) -> dict[str, int]:
    run = RunConfig.model_validate(tree)
    opened = open_manifest(run.data.url)
    session = build_session(run, Rank(rank, world), opened, opened.schema, opened.statistics["default"])
    zero = session.engine._zero
    masters = zero.single_partition_of_fp32_groups
    frozen = sum(p.nbytes for p in session.engine.module.parameters() if not p.requires_grad)
    return {
        "frozen_parameters": frozen,
        "trained_parameters": sum(flat.nbytes for flat in zero.bit16_groups_flat),
        "master_weights": sum(flat.nbytes for flat in masters),
        "moments": 2 * sum(flat.nbytes for flat in masters),
    }


def test_bytes_equal_those_of_a_real_build(tmp_path: Path) -> None:
    data = packed_vqa(tmp_path)
    manifest = open_manifest(data)
    run = recipe(data, tmp_path, parallel__workers=2, parallel__precision="bf16", mope__source_length=2)
    statistics = manifest.statistics["default"]
    plan = plan_replicated(job_type(run.job), run, manifest.schema, statistics, find_device("h100"), 2)
    for rank in run_ranks(_occupied, 2, run.model_dump(mode="json")):
        assert {kind: plan["bytes"][kind] for kind in rank} == rank


@pytest.mark.parametrize("hidden", [8, 64])
def test_modelled_activations_of_a_head_that_marks_pixels_are_near_the_saved_ones(hidden: int) -> None:
    network = segmenter(mask={"hidden": hidden}).train()
    modelled = 4 * 8 * tower_elements(network)
    assert 0.6 < modelled / saved_bytes(network, squares(8, 0)) < 1.6


@pytest.mark.parametrize("attention", ["joint", "per_modality", "factorized"])
def test_modelled_activations_of_a_host_are_near_the_saved_ones(attention: str) -> None:
    known = host_batch(tiny_records(12))
    statistics = stated_statistics(TINY, float(known.present_BM.float().mean()))
    for method in ("mope", "static", "head"):
        network = prompted(attention, method=method).train()
        modelled = 4 * len(known) * host_elements(network, TINY, statistics)
        saved = saved_bytes(network, known)
        assert modelled == 0 and saved < 10_000 if method == "head" else 0.6 < modelled / saved < 1.6


@pytest.mark.parametrize("method", ["mope", "full", "head"])
@pytest.mark.parametrize("family", ["vit", "swin"])
def test_modelled_activations_are_near_the_saved_ones(family: str, method: str) -> None:
    small = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 256}
    image = {**small, "image_size": 16, "patch_size": 2}
    if family == "swin":
        image = {"image_size": 16, "patch_size": 1, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 2]}
        image |= {"window_size": 4}
    text = {**small, "vocab_size": 260, "max_position_embeddings": 64}
    statistics = stated_statistics(SCHEMA, 1.0)
    statistics.modalities["text"] = dataclasses.replace(statistics.modalities["text"], mean=(13.0,))
    tree = {"method": method, "image": {"family": family, "config": image}, "text": {"family": "bert", "config": text}}
    network = TowerModel(SCHEMA, ["answer"], statistics, MopeConfig.model_validate(tree), 0).train()
    saved = saved_bytes(network, batch(8))
    modelled = 4 * 8 * tower_elements(network)
    if method == "head":
        assert modelled == 0 and saved < 100_000
    else:
        assert 0.6 < modelled / saved < 1.6
