"""Features of every family, against plain transformers on the same input."""

from __future__ import annotations

import importlib.util
import itertools
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.pretrained import FAMILIES, PICTURES, RATE, SPECS, TEXTS, group_of, kind_of, objects, save_encoder
from trainer.config.encoders import PretrainedConfig
from trainer.models.pretrained.encoder import PretrainedEncoder
from trainer.models.pretrained.load import load_encoder
from trainer.models.pretrained.loading.backbone import BackboneError


def plain_hidden(
    family: str, folder: Path, one: Any, pooled: bool = True, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Hidden states (L, D) of one object, by the library alone."""
    from transformers import ASTFeatureExtractor, AutoModel, AutoTokenizer, Wav2Vec2FeatureExtractor

    model = AutoModel.from_pretrained(folder, dtype=dtype).eval()
    inputs: Any
    if family in TEXTS:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        inputs = tokenizer(one.decode(), return_tensors="pt", truncation=True, max_length=24)
        inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    elif family in PICTURES:
        mean, std = (torch.tensor(v)[:, None, None] for v in ([0.5, 0.25, 0.1], [0.5, 0.4, 0.9]))
        inputs = {"pixel_values": ((one / 255 - mean) / std)[None]}
    else:
        extractor = (Wav2Vec2FeatureExtractor if "wav2vec2" in family else ASTFeatureExtractor).from_pretrained(folder)
        if "wav2vec2" not in family:
            extractor.num_mel_bins, extractor.max_length = 16, 48
            extractor = ASTFeatureExtractor(
                num_mel_bins=16, max_length=48, mean=extractor.mean, std=extractor.std, sampling_rate=RATE
            )
        inputs = {"input_values": extractor(one.numpy(), sampling_rate=RATE, return_tensors="pt")["input_values"]}
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad():
        output = model(**inputs)
    if family == "convnext" and pooled:
        return model.layernorm(output.last_hidden_state.mean((2, 3)))
    hidden = output.last_hidden_state
    return hidden[0].flatten(1).T if hidden.ndim == 4 else hidden[0]


def pooled(family: str, hidden: Tensor) -> Tensor:
    """(D,) of hidden states (L, D): the one vector that the family's makers take."""
    if "spectrogram" in family:
        return (hidden[0] + hidden[1]) / 2
    return hidden[0] if family in (*TEXTS, "vit", "dinov2") else hidden.mean(0)


def read(encoder: PretrainedEncoder, made: list[Any]) -> Tensor:
    group = group_of(encoder.kind, made)
    with torch.no_grad():
        return encoder(group, encoder.look(group))


def encoder_of(family: str, folder: Path, **settings: Any) -> PretrainedEncoder:
    return load_encoder(SPECS[kind_of(family)], PretrainedConfig(source=str(folder), **settings)).eval()


def many(family: str, folder: Path, tokens: int, one: Any) -> Tensor:
    """(N, D) of one object, by loops: means of stretches of its states, or of rectangles of its cells."""
    hidden = plain_hidden(family, folder, one, pooled=False)
    if family in PICTURES:
        leading = 1 if family in ("vit", "dinov2") else 0
        side = int((len(hidden) - leading) ** 0.5)
        cells = hidden[leading:].view(side, side, -1)
        assert tokens == 2, "a row of two columns"
        found = torch.stack([cells[:, : side // 2].flatten(0, 1).mean(0), cells[:, side // 2 :].flatten(0, 1).mean(0)])
        return norm_of(folder)(found) if family == "convnext" else found
    if "spectrogram" in family:
        own = min(6, -(-(1 + (len(one) - 400) // 160) // 8))
        hidden = hidden[2:].view(2, 6, -1)[:, :own].mean(0)
    edges = [-(-token * len(hidden) // tokens) for token in range(tokens + 1)]
    return torch.stack([hidden[a:b].mean(0) for a, b in itertools.pairwise(edges)])


def norm_of(folder: Path) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder, dtype=torch.float32).layernorm


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=1e-6 * float(expected.detach().abs().max().clamp_min(1)))


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_plain_transformers(family: str, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / family, family)
    made = objects(kind_of(family))
    pooled_PD = read(encoder_of(family, folder), made)[:, 0]
    hidden = [plain_hidden(family, folder, one) for one in made]
    expected = torch.stack([pooled(family, one) for one in hidden])
    assert pooled_PD.shape == (5, 32) and expected.std() > 0.05
    assert close(pooled_PD, expected)
    # A few tokens of each, some one by one: an object's neighbours change nothing.
    encoder = encoder_of(family, folder, tokens=2)
    found_PND = read(encoder, made)
    assert close(found_PND, torch.stack([many(family, folder, 2, one) for one in made]).detach())
    assert close(read(encoder, made[3:4]), found_PND[3:4])
    assert read(encoder, []).shape == (0, 2, 32) if kind_of(family) == "text" else True
    assert encoder.digest == encoder_of(family, folder).digest, "of the source, and not of how it is used"


def one_step(encoder: PretrainedEncoder, made: list[Any]) -> set[str]:
    """A step against its own features; names of the parameters that had a gradient that is not zero."""
    encoder.train()
    group = group_of(encoder.kind, made)
    value = encoder(group, encoder.look(group))
    if value.requires_grad:
        (value * torch.arange(1.0, 33.0).cos()).sum().backward()
    found = {name for name, p in encoder.named_parameters() if p.grad is not None and bool(p.grad.any())}
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.05 * parameter.grad.sign())
    encoder.eval()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_of_each_family(family: str, tmp_path: Path) -> None:
    folder, made = save_encoder(tmp_path / family, family), objects(kind_of(family), 3)
    frozen = encoder_of(family, folder)
    before = read(frozen, made)
    assert one_step(frozen, made) == set() and torch.equal(read(frozen, made), before)
    lora = encoder_of(family, folder, train="lora", rank=2)
    assert close(read(lora, made), before), "it begins as what it was"
    assert {name.split(".")[-3] for name in one_step(lora, made)} == {"lora_B"}
    one_step(lora, made)
    trained = {name for name, p in lora.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    assert not close(read(lora, made), before)
    full = encoder_of(family, folder, train="all")
    statistics = {name: value.clone() for name, value in full.named_buffers()}
    assert close(read(full, made), before)
    moved = one_step(full, made)
    idle = {name for name, p in full.named_parameters() if p.requires_grad} - moved
    # Softmax does not see a shift of all keys; a picture's first token does not see all of it either.
    unread = (
        "k_proj.bias",
        "key.bias",
        "k_lin.bias",
        "global",
        "word_embeddings",
        "tok_embeddings",
        "position",
        "type",
    )
    assert all(any(part in name for part in unread) for name in idle), idle
    assert not close(read(full, made), before)
    assert all(torch.equal(value, statistics[name]) for name, value in full.named_buffers()), "batch norms do not move"
    assert full.digest == frozen.digest == lora.digest


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_files_and_frozen_weights(family: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    folder, made = save_encoder(tmp_path / "whole", family), objects(kind_of(family))
    half = save_encoder(tmp_path / "half", family)
    AutoModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(half)
    stored, cast = encoder_of(family, half), encoder_of(family, folder)
    with torch.no_grad():
        for parameter in cast.parameters():
            parameter.copy_(parameter.bfloat16())
    assert {p.dtype for p in stored.parameters()} == {torch.float32}
    if family != "resnet":  # whose statistics are stored in half precision as well
        assert torch.equal(read(stored, made), read(cast, made))
    # A model that is computed in bfloat16 leaves what is frozen in it as it is.
    before = read(stored, made)
    assert torch.equal(read(stored.bfloat16(), made), before)
    low = encoder_of(family, folder, dtype="bfloat16")
    found = read(low, made)
    plain = [plain_hidden(family, folder, one, dtype=torch.bfloat16).float() for one in made]
    expected = torch.stack([pooled(family, hidden) for hidden in plain])[:, None]
    assert found.dtype == torch.float32 and float((found - expected).norm() / expected.norm()) < 0.02
    assert not close(found, read(encoder_of(family, folder), made))
    # What is trained as a whole follows the model that it is in.
    follows = encoder_of(family, folder, train="all").bfloat16().eval()
    assert {p.dtype for p in follows.parameters() if p.requires_grad} == {torch.bfloat16}
    assert float((read(follows, made) - expected).norm() / expected.norm()) < 0.02


def test_what_was_said_is_kept_by_content_and_no_bit_changes(tmp_path: Path) -> None:
    folder, made = save_encoder(tmp_path / "bert", "bert"), objects("text", 6)
    made[4] = made[1]
    encoder = encoder_of("bert", folder, cache=True)
    first = read(encoder, made)
    assert encoder.counts == {"read": 5, "cut": 0, "kept": 1} and torch.equal(first[1], first[4])
    mixed = read(encoder, [made[3], b"small red", made[0]])
    assert torch.equal(mixed[[0, 2]], first[[3, 0]]) and encoder.counts["read"] == 6
    fresh = encoder_of("bert", folder, cache=True)
    assert torch.equal(read(fresh, [b"small red"])[0], mixed[1])
    assert close(first, read(encoder_of("bert", folder), made))
    # A place for two: the rest is read each time, and the same.
    assert fresh.features is not None
    fresh.features.most = 2
    assert torch.equal(read(fresh, made), first) and torch.equal(read(fresh, made), first)
    assert len(fresh.features) == 2 and fresh.counts["kept"] == 1 + 1 + 1


def test_batches_that_were_looked_at_before_the_last_one_was_read(tmp_path: Path) -> None:
    """As in training, where the next batch is prepared while the one before it is on its way."""
    folder, made = save_encoder(tmp_path / "vit", "vit"), objects("image", 4)
    encoder = encoder_of("vit", folder, cache=True)
    groups = [group_of("image", made[:3]), group_of("image", made[1:])]
    looked = [encoder.look(group) for group in groups]
    first, second = (encoder(group, own) for group, own in zip(groups, looked, strict=True))
    assert torch.equal(first[1:], second[:2]) and encoder.features is not None and len(encoder.features) == 4
    assert torch.equal(read(encoder, made), torch.cat([first, second[2:]]))


def test_longer_texts_are_cut_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_encoder(tmp_path / "bert", "bert")
    encoder = encoder_of("bert", folder, max_tokens=6)
    with caplog.at_level(logging.WARNING):
        found = read(encoder, [b"red blue green shape", b"red blue green shape round", b""])
    assert encoder.counts == {"read": 3, "cut": 1, "kept": 0}
    assert "encoder of notes: 1 of the first 3 objects are longer than what it reads of one (6 tokens)" in caplog.text
    assert torch.allclose(found[0], found[1], atol=1e-6) and not torch.allclose(found[0], found[2], atol=1e-2)
    sound = encoder_of("wav2vec2", save_encoder(tmp_path / "w", "wav2vec2"), max_seconds=0.1)
    signal = objects("waveform", 1)[0].repeat(2)[:3000]
    assert close(read(sound, [signal, signal[:1600]])[0], read(sound, [signal[:1600]])[0]) and sound.cut == 1


def test_pictures_of_another_size_and_grey_ones(tmp_path: Path) -> None:
    from dataclasses import replace

    folder = save_encoder(tmp_path / "vit", "vit")
    grey = load_encoder(replace(SPECS["image"], shape=(1, 24, 16)), PretrainedConfig(source=str(folder)))
    picture = torch.randint(0, 256, (1, 24, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sized = torch.nn.functional.interpolate(picture[None].float(), (16, 16), mode="bilinear", antialias=True)[0]
    expected = plain_hidden("vit", folder, sized.expand(3, -1, -1))[0]
    assert close(read(grey, [picture])[0, 0], expected)


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    from dataclasses import replace

    def said(family: str, folder: Path, **changes: Any) -> str:
        with pytest.raises(BackboneError) as caught:
            load_encoder(replace(SPECS[kind_of(family)], **changes), PretrainedConfig(source=str(folder)))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    vit, speech = save_encoder(tmp_path / "vit", "vit"), save_encoder(tmp_path / "speech", "wav2vec2")
    bert, resnet = save_encoder(tmp_path / "bert", "bert"), save_encoder(tmp_path / "resnet", "resnet")
    assert said("vit", vit, shape=(2, 16, 16)) == (
        "encoder of cxr takes pictures of 3 channels, and modality cxr has 2: pack it with 3, or with 1, which is "
        "taken "
        "3 times"
    )
    assert (
        said("wav2vec2", speech, rate=500.0)
    ) == "encoder of sound takes signals of 16000 samples per second, and modality sound has 500: pack it at 16000"
    assert "modality sound declares no rate" in said("wav2vec2", speech, rate=None)
    assert "takes signals of one channel, and modality sound has 2" in said("wav2vec2", speech, shape=(2,))
    assert "is a model of type vit; those known here are bert, roberta" in said("bert", vit)
    assert "folder /no/where does not exist" in said("bert", Path("/no/where"))
    if importlib.util.find_spec("timm") is None:
        (tmp_path / "timm").mkdir()
        facts = {"model_type": "timm_wrapper", "architecture": "densenet121", "num_classes": 0}
        (tmp_path / "timm" / "config.json").write_text(json.dumps(facts))
        assert re.search(
            "^encoder of cxr: .*/timm needs a library that is not installed: .* requires the timm library .*"
            "`pip install timm`.$",
            said("vit", tmp_path / "timm"),
        )
    for folder in (vit, speech):
        (folder / "preprocessor_config.json").unlink()
    assert "does not say how pixels are normalised" in said("vit", vit)
    assert "does not say at which rate signals are sampled" in said("wav2vec2", speech)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (bert / name).unlink(missing_ok=True)
    assert "encoder of notes: its tokenizer knows no words" in said("bert", bert)
    facts = json.loads((resnet / "config.json").read_text())
    (resnet / "config.json").write_text(json.dumps({**facts, "hidden_sizes": [16, 64]}))
    assert "has weights of other shapes than its config.json says" in said("resnet", resnet)
    (resnet / "model.safetensors").unlink()
    assert "holds no usable model (it needs config.json and model.safetensors)" in said("resnet", resnet)
