"""Tiny random encoders of every family in folders of transformers' format, and groups of objects for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_shards import Group, ImageGroup, ModalitySpec, TextGroup, WaveformGroup

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "green", "shape", "round", "square", "small"]
SIDE, RATE = 16, 16_000
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_TEXT = {"vocab_size": len(WORDS), "max_position_embeddings": 32, "pad_token_id": 0}
_IDS = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
_SPEECH = {
    **_SMALL,
    "conv_dim": [16, 16],
    "conv_stride": [5, 2],
    "conv_kernel": [10, 3],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {**_SMALL, **_TEXT},
    "roberta": {**_SMALL, **_TEXT},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, **_TEXT},
    "modernbert": {**_SMALL, **_TEXT, **_IDS, "global_attn_every_n_layers": 2, "local_attention": 8},
    "longformer": {**_SMALL, **_TEXT, "attention_window": [4, 4]},
    "vit": {**_SMALL, "image_size": SIDE, "patch_size": 4},
    "dinov2": {**_SMALL, "image_size": SIDE, "patch_size": 4},
    "swin": {
        "image_size": SIDE, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4
    },
    "convnext": {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
    "wav2vec2": _SPEECH,
    "wav2vec2-layer": {**_SPEECH, "feat_extract_norm": "layer", "do_stable_layer_norm": True},
    "audio-spectrogram-transformer": {
        **_SMALL, "max_length": 48, "num_mel_bins": 16, "patch_size": 8, "frequency_stride": 8, "time_stride": 8
    },
}  # fmt: skip
TEXTS = ("bert", "roberta", "distilbert", "modernbert", "longformer")
PICTURES = ("vit", "dinov2", "swin", "convnext", "resnet")
SOUNDS = ("wav2vec2", "wav2vec2-layer", "audio-spectrogram-transformer")
SPECS = {
    "text": ModalitySpec("notes", "text"),
    "image": ModalitySpec("cxr", "image", shape=(3, SIDE, SIDE), dtype="uint8"),
    "waveform": ModalitySpec("sound", "waveform", shape=(1,), rate=RATE),
}


def kind_of(family: str) -> str:
    return "text" if family in TEXTS else "image" if family in PICTURES else "waveform"


def save_encoder(folder: Path, family: str, seed: int = 1, **changes: Any) -> Path:
    """A model of the family with weights of a trained one's size: fresh ones hardly look at their input."""
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(seed)
    model = AutoModel.from_config(
        AutoConfig.for_model(family.removesuffix("-layer"), **{**FAMILIES[family], **changes})
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.3)  # positions and tokens of the spectrogram transformer begin as zeros
            elif parameter.ndim > 1:
                parameter.mul_(0.3 / parameter.std().clamp_min(0.02))
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn_like(buffer))
    model.save_pretrained(folder)
    kind = kind_of(family)
    if kind == "text":
        save_tokenizer(folder)
    elif kind == "image":
        facts = {"image_mean": [0.5, 0.25, 0.1], "image_std": [0.5, 0.4, 0.9], "rescale_factor": 1 / 255}
        (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    else:
        facts = {"sampling_rate": RATE, "do_normalize": True, "mean": -2.0, "std": 3.0}
        (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    return folder


def save_tokenizer(folder: Path) -> None:
    from transformers import BertTokenizerFast

    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=24).save_pretrained(folder)


def objects(kind: str, rows: int = 5, seed: int = 0) -> list[Any]:
    """Texts, pictures (3, SIDE, SIDE) uint8, or signals; object i is the same in a group of any size."""
    made: list[Any] = []
    for row in range(rows):
        rng = np.random.default_rng((seed, row))
        if kind == "text":
            made.append(" ".join(rng.choice(WORDS[5:], rng.integers(1, 9))).encode())
        elif kind == "image":
            made.append(torch.from_numpy(rng.integers(0, 256, (3, SIDE, SIDE), np.uint8)))
        else:
            made.append(torch.from_numpy(rng.normal(0.1, 0.3, int(rng.integers(900, 5000))).astype(np.float32)))
    return made


def group_of(kind: str, made: list[Any]) -> Group:
    """A group of these objects, one a record."""
    rows = torch.arange(len(made))
    modality = torch.zeros(len(made), dtype=torch.int64)
    if kind == "image":
        none = torch.zeros(0, 3, SIDE, SIDE, dtype=torch.uint8)
        return ImageGroup(modality, rows, torch.stack(made) if made else none)
    ends = torch.tensor([0, *np.cumsum([len(one) for one in made])])
    if kind == "text":
        return TextGroup(modality, rows, ends, torch.from_numpy(np.frombuffer(b"".join(made), np.uint8).copy()))
    return WaveformGroup(modality, rows, ends, torch.cat([torch.zeros(0), *made])[:, None])
