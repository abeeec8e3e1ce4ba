"""Towers whose weights are stored in half precision, or in several types at once: float32 with the stored values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.ranks import run_ranks
from tests.trainer.jobs.test_train import FixedContext, losses
from tests.trainer.towers import FAMILIES, STATISTICS
from tests.trainer.vqa import packed_vqa, recipe
from trainer.config.mope import TowerConfig
from trainer.config.run_config import RunConfig
from trainer.jobs.job import run
from trainer.models.mope.towers.tower import load_tower
from trainer.models.pretrained.loading.backbone import BackboneError

SOURCES = {"image": "vit", "text": "bert"}


def stored(folder: Path, what: str, dtype: torch.dtype | None, said: str | None = None) -> dict[str, torch.Tensor]:
    """A folder of a tiny tower; dtype None = every third tensor in float16, in bfloat16 and in float32.

    `said`: what config.json says of the type. Returns the weights in float32, as they were stored.
    """
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(3)
    AutoModel.from_config(AutoConfig.for_model(SOURCES[what], **FAMILIES[SOURCES[what]])).save_pretrained(folder)
    file = folder / "model.safetensors"
    types = (torch.float16, torch.bfloat16, torch.float32) if dtype is None else (dtype,)
    weights = {name: (5 * w).to(types[i % len(types)]) for i, (name, w) in enumerate(sorted(load_file(file).items()))}
    save_file(weights, file, metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    settings["dtype"] = said or str(types[0]).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(settings))
    return {name: value.to(torch.float32) for name, value in weights.items()}


@pytest.mark.parametrize("what", ["image", "text"])
@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        (torch.float16, None),
        (torch.bfloat16, None),
        (None, "float16"),
        (None, "float32"),
        (torch.float32, "bfloat16"),
        (torch.float16, "float32"),
    ],
)
def test_weights_are_float32_and_what_was_stored(
    tmp_path: Path, what: str, dtype: torch.dtype | None, said: str | None
) -> None:
    expected = stored(tmp_path, what, dtype, said)
    tower = load_tower(what, TowerConfig(source=str(tmp_path), tokenizer="bytes"), STATISTICS.modalities[what])
    found = dict(tower.model.named_parameters())
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert all(value.dtype == torch.float32 for value in tower.model.buffers() if value.is_floating_point())
    # By value, as the library has other names for some weights than files have.
    values = {value.numpy().tobytes() for value in expected.values()}
    assert len(found) > 20 and all(value.detach().numpy().tobytes() in values for value in found.values())
    # Of its configuration only: `plan` counts the bytes of float32.
    shapes = load_tower(what, TowerConfig(source=str(tmp_path), tokenizer="bytes"), STATISTICS.modalities[what], False)
    assert {value.dtype for value in shapes.model.parameters()} == {torch.float32}


def test_a_type_in_the_recipe_is_refused() -> None:
    for name in ("dtype", "torch_dtype"):
        section = TowerConfig(family="vit", config={**FAMILIES["vit"], name: "float16"})
        with pytest.raises(BackboneError, match=rf"mope.image.config.{name} is not for a recipe to say: towers are fl"):
            load_tower("image", section)


def test_a_quantised_model_is_refused(tmp_path: Path) -> None:
    stored(tmp_path, "text", torch.float32)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(BackboneError, match=r"tower text: .* is quantised, and its weights are no plain numbers"):
        load_tower("text", TowerConfig(source=str(tmp_path), tokenizer="bytes"))


def test_what_a_folder_says_of_outputs_and_pixels_changes_nothing_but_pixels(tmp_path: Path) -> None:
    stored(tmp_path, "image", torch.float32)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    pictures = torch.arange(3 * 16 * 16).view(1, 3, 16, 16) % 256
    section = TowerConfig(source=str(tmp_path))
    plain = load_tower("image", section).eval()
    assert plain.mean().flatten().tolist() == [127.5] * 3
    expected = plain.pictures(pictures)
    (tmp_path / "config.json").write_text(json.dumps({**settings, "return_dict": False}))
    assert torch.equal(load_tower("image", section).eval().pictures(pictures), expected)
    for facts, mean in (({"do_rescale": False}, 0.5), ({"rescale_factor": 1 / 127.5}, 63.75)):
        told = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, **facts}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
        assert load_tower("image", section).mean().flatten().tolist() == pytest.approx([mean] * 3)


def _jobs(rank: int, world: int, trees: list[dict[str, Any]]) -> list[str]:
    return [run(RunConfig.of(tree), FixedContext(rank, world))["status"] for tree in trees]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_are_those_of_the_same_values_stored_as_float32(tmp_path: Path, precision: str) -> None:
    """Pictures in float16, texts in bfloat16, through head, LoRA and prompts; equal to the last bit."""
    data = packed_vqa(tmp_path / "vqa")
    folders: dict[str, dict[str, Path]] = {"half": {}, "float": {}}
    for what, dtype in (("image", torch.float16), ("text", torch.bfloat16)):
        half, full = tmp_path / f"half_{what}", tmp_path / f"float_{what}"
        values = stored(half, what, dtype)
        stored(full, what, torch.float32)
        save_file(values, full / "model.safetensors", metadata={"format": "pt"})
        folders["half"][what], folders["float"][what] = half, full
    trees = []
    for method in ("head", "lora", "mope"):
        for kind, own in folders.items():
            towers = {
                "mope__image": {"source": str(own["image"])},
                "mope__text": {"source": str(own["text"]), "tokenizer": "bytes"},
            }
            changes = {"mope__method": method, "parallel__precision": precision, "training__max_steps": 2, **towers}
            trees.append(recipe(data, tmp_path / kind / method, **changes).model_dump(mode="json"))
    assert run_ranks(_jobs, 1, trees)[0] == ["finished"] * 6
    for method in ("head", "lora", "mope"):
        found, expected = (losses(tmp_path / kind / method) for kind in ("half", "float"))
        assert len(found) == 2 and found == expected
