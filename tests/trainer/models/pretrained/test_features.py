"""Features of every family, against plain transformers on the same input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.pretrained import FAMILIES, PICTURES, RATE, SPECS, TEXTS, group_of, kind_of, objects, save_encoder
from trainer.config.encoders import PretrainedConfig
from trainer.models.pretrained.encoder import PretrainedEncoder
from trainer.models.pretrained.load import load_encoder


def plain_hidden(family: str, folder: Path, one: Any) -> Tensor:
    """Hidden states (L, D) of one object, by the library alone."""
    from transformers import ASTFeatureExtractor, AutoModel, AutoTokenizer, Wav2Vec2FeatureExtractor

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
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
    with torch.no_grad():
        output = model(**inputs)
    if family == "convnext":
        return model.layernorm(output.last_hidden_state.mean((2, 3)))
    hidden = output.last_hidden_state
    return hidden[0].flatten(1).T if hidden.ndim == 4 else hidden[0]


def read(encoder: PretrainedEncoder, made: list[Any]) -> Tensor:
    group = group_of(encoder.kind, made)
    with torch.no_grad():
        return encoder(group, encoder.look(group))


def encoder_of(family: str, folder: Path, **settings: Any) -> PretrainedEncoder:
    return load_encoder(SPECS[kind_of(family)], PretrainedConfig(source=str(folder), **settings)).eval()


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max().clamp_min(1)))


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_plain_transformers(family: str, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / family, family)
    made = objects(kind_of(family))
    pooled_PD = read(encoder_of(family, folder), made)[:, 0]
    hidden = [plain_hidden(family, folder, one) for one in made]
    if "spectrogram" in family:
        expected = torch.stack([(one[0] + one[1]) / 2 for one in hidden])
    elif family in (*TEXTS, "vit", "dinov2"):
        expected = torch.stack([one[0] for one in hidden])
    else:
        expected = torch.stack([one.mean(0) for one in hidden])
    assert pooled_PD.shape == (5, 32) and expected.std() > 0.05
    assert close(pooled_PD, expected)
