"""Towers from folders in the format of transformers, and what is said when one cannot be loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.towers import FAMILIES, SCHEMA, SIDE, STATISTICS, batch, model, section
from trainer.config.mope import MopeConfig, TowerConfig
from trainer.models.mope.towers.tower import load_tower
from trainer.models.pretrained.loading.backbone import BackboneError, digest_of

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "blue", "shape", "[MASK]"]


def vision_folder(path: Path, family: str = "vit") -> Path:
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(1)
    AutoModel.from_config(AutoConfig.for_model(family, **FAMILIES[family])).save_pretrained(path)
    facts = {"image_mean": [0.5, 0.25, 0.0], "image_std": [0.5, 0.5, 1.0], "do_normalize": True}
    (path / "preprocessor_config.json").write_text(json.dumps(facts))
    return path


def text_folder(path: Path) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(2)
    BertModel(BertConfig(**{**FAMILIES["bert"], "vocab_size": len(WORDS)})).save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab=str(path / "vocab.txt")).save_pretrained(path)
    return path


def test_folders_give_the_models_that_were_saved(tmp_path: Path) -> None:
    from transformers import BertModel, ViTModel

    image, text = vision_folder(tmp_path / "vit"), text_folder(tmp_path / "bert")
    config = section().model_copy(
        update={"image": TowerConfig(source=str(image)), "text": TowerConfig(source=str(text), readout="cls")}
    )
    torch.manual_seed(0)
    from trainer.models.mope.towers.model import TowerModel

    network = TowerModel(SCHEMA, ["answer"], STATISTICS, config, 0).eval()
    records = batch(2)
    pictures = records.groups[f"image/3x{SIDE}x{SIDE}"].values_PCHW  # type: ignore[attr-defined]
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.5, 0.25, 0.0], [0.5, 0.5, 1.0]))
    with torch.no_grad():
        expected = ViTModel.from_pretrained(image)(pixel_values=(pictures / 255 - mean) / std).last_hidden_state
        tower: Any = network.towers["image"]
        assert torch.allclose(tower.pictures(pictures), expected, atol=1e-5), "normalised as the folder says"
        words: Any = network.towers["text"]
        numbers, valid = words.tokenizer([b"Red shape", b"blue"])
        assert numbers.tolist() == [[2, 4, 6, 3], [2, 5, 3, 0]] and valid.sum().item() == 7
        plain = BertModel.from_pretrained(text)(input_ids=numbers, attention_mask=valid.long()).last_hidden_state
        hidden = words.encode_tokens(numbers, valid)
        assert torch.allclose(hidden[valid], plain[valid], atol=1e-5)
        assert torch.allclose(words.read(hidden, valid), plain[:, 0], atol=1e-5)
    assert "torchvision" not in sys.modules


def test_a_digest_names_weights_and_nothing_else(tmp_path: Path) -> None:
    first, again, other = model(section()), model(section()), model(section(), seed=1)
    assert first.backbone_digest == again.backbone_digest != other.backbone_digest
    weights = {"a": torch.arange(4.0).view(2, 2)}
    assert digest_of(weights) == digest_of({"a": weights["a"].clone()})
    assert digest_of(weights) != digest_of({"a": weights["a"].view(4)}) != digest_of({"b": weights["a"].view(4)})


def test_a_folder_without_usable_weights_is_named(tmp_path: Path) -> None:
    folder = vision_folder(tmp_path / "vit")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"tower image: .*/vit holds no usable model \(it needs config.json and"):
        load_tower("image", TowerConfig(source=str(folder)))
    with pytest.raises(BackboneError, match=r"tower text: family 'vit' is none of clip_text_model"):
        load_tower("text", TowerConfig(family="vit", config=FAMILIES["vit"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackboneError, match=r"tower image: .*/empty holds no usable configuration"):
        load_tower("image", TowerConfig(source=str(tmp_path / "empty")))
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(BackboneError, match=r"is a model of type gpt2; those known here are vit, swin"):
        load_tower("text", TowerConfig(source=str(tmp_path / "gpt")))


@pytest.mark.parametrize("left", [0, 100, 0.5])
def test_damaged_weights_are_one_sentence(tmp_path: Path, left: float) -> None:
    path = vision_folder(tmp_path / "vit") / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(left * len(data))] if left < 1 else b"rubbish " * int(left))
    with pytest.raises(BackboneError, match=r"tower image: .*/vit holds no usable model \(it needs config.json and"):
        load_tower("image", TowerConfig(source=str(path.parent)))


def test_a_folder_that_does_not_fit_itself_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = vision_folder(tmp_path / "vit")
    capfd.readouterr()
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**facts, "hidden_size": 32}))
    with pytest.raises(BackboneError, match=r"/vit has weights of other shapes than its config.json says"):
        load_tower("image", TowerConfig(source=str(folder)))
    assert "MISMATCH" not in "".join(capfd.readouterr()), "a sentence, no table"
    (folder / "config.json").write_text("{ not json")
    with pytest.raises(BackboneError, match=r"/vit holds no usable configuration"):
        load_tower("image", TowerConfig(source=str(folder)))
    with pytest.raises(BackboneError, match=r"mope.image.config does not make a vit: .*'hidden_size' expected int"):
        load_tower("image", TowerConfig(family="vit", config={"hidden_size": "x"}))


def test_a_tokenizer_that_knows_no_words_or_too_many_is_refused(tmp_path: Path) -> None:
    folder, other = text_folder(tmp_path / "bert"), text_folder(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(BackboneError, match=r"tower text: its tokenizer knows no words"):
        load_tower("text", TowerConfig(source=str(folder)))
    load_tower("text", TowerConfig(source=str(folder), tokenizer=str(other)))
    small = {**FAMILIES["bert"], "vocab_size": len(WORDS) - 1}
    with pytest.raises(BackboneError, match=r"its tokenizer knows 8 tokens, and the model embeds 7"):
        load_tower("text", TowerConfig(family="bert", config=small, tokenizer=str(other)))


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    folder = vision_folder(tmp_path / "vit")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"holds no usable model"):
        load_tower("image", TowerConfig(source=str(folder)))


def test_a_name_that_cannot_be_fetched_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network: one sentence, at once."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError) as caught:
        load_tower("image", TowerConfig(source="no-such-people/no-such-model"))
    text = str(caught.value)
    assert "'no-such-people/no-such-model' is not a folder" in text and "is not in the local cache" in text
    assert "hf download no-such-people/no-such-model" in text and "\n" not in text


def test_towers_that_a_recipe_names_make_a_section() -> None:
    assert MopeConfig.model_validate({"image": {"family": "vit"}}).prompted == "image"
    with pytest.raises(ValueError, match=r"mope.host and mope.image or mope.text are both given"):
        MopeConfig.model_validate({"host": "runs/x", "gate": True, "image": {"family": "vit"}})
    with pytest.raises(ValueError, match=r"mope.host needs mope.gate=true"):
        MopeConfig.model_validate({"host": "runs/x"})
