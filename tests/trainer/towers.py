"""Tiny towers of every family, batches of made-up pictures and texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from data_shards import Batch, DatasetSchema, ImageGroup, ModalitySpec, TaskSpec, TextGroup
from data_shards.records.statistics import ModalityStatistics, SplitStatistics, TaskStatistics
from trainer.config.mope import MopeConfig
from trainer.models.mope.towers.model import TowerModel

SIDE = 16
_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_PICTURE = {"image_size": SIDE, "patch_size": 4}
_TEXT = {"vocab_size": 260, "max_position_embeddings": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "vit": {**_SMALL, **_PICTURE},
    "dinov2": {**_SMALL, **_PICTURE},
    "clip_vision_model": {**_SMALL, **_PICTURE},
    # 8 x 8 patches in windows of 4: four windows a picture in the first stage, one in the second.
    "swin": {
        "image_size": SIDE,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [2, 2],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "bert": {**_SMALL, **_TEXT},
    "roberta": {**_SMALL, **_TEXT},
    "electra": {**_SMALL, **_TEXT, "embedding_size": 16},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, **_TEXT},
    "clip_text_model": {**_SMALL, **_TEXT, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0},
}
SCHEMA = DatasetSchema(
    "pairs",
    (ModalitySpec("image", "image", shape=(3, SIDE, SIDE), dtype="uint8"), ModalitySpec("text", "text", max_length=40)),
    (TaskSpec("answer", "multiclass", classes=("a", "b", "c")),),
)
STATISTICS = SplitStatistics(
    1,
    {
        "image": ModalityStatistics(1, (1,) * 3, (128.0,) * 3, (64.0,) * 3, (0.0,) * 3, (255.0,) * 3),
        "text": ModalityStatistics(1, (1,), (10.0,), (1.0,), (1.0,), (40.0,)),
    },
    {"answer": TaskStatistics(1, (1, 1, 1), (0.0,), (1.0,))},
)


def section(image: str = "vit", text: str = "bert", **changes: Any) -> MopeConfig:
    """Two tiny towers and small prompts."""
    tree: dict[str, Any] = {
        "image": {"family": image, "config": FAMILIES[image]},
        "text": {"family": text, "config": FAMILIES[text]},
        "k": 3,
        "static_length": 2,
        "dynamic_length": 2,
        "mapper_hidden": 8,
        "dropout": 0.0,
    }
    return MopeConfig.model_validate({**tree, **changes})


def model(config: MopeConfig, seed: int = 0, pretraining: bool = False) -> TowerModel:
    """A model whose towers have weights of a trained one's size: fresh ones hardly look at their input."""
    torch.manual_seed(seed)
    made = TowerModel(SCHEMA, ["answer"], STATISTICS, config, seed, pretraining)
    with torch.no_grad():
        for parameter in made.towers.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.2 / parameter.std().clamp_min(0.02))
    return made


def batch(records: int, seed: int = 0, without: dict[str, set[int]] | None = None) -> Batch:
    """Made-up records; `without` says which lack a modality. Record i is the same in a batch of any size."""
    pictures, texts = {}, {}
    for number in range(records):
        rng = np.random.default_rng([seed, number])
        pictures[number] = torch.from_numpy(rng.integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8))
        texts[number] = rng.integers(97, 123, int(rng.integers(3, 20)), dtype=np.uint8).tobytes()
    return build(pictures, texts, list(range(records)), without)


def build(
    pictures: dict[int, torch.Tensor],
    texts: dict[int, bytes],
    numbers: list[int],
    without: dict[str, set[int]] | None = None,
) -> Batch:
    """The batch of these records, in this order."""
    lost = {"image": set(), "text": set(), **(without or {})}
    has = {name: [row for row, n in enumerate(numbers) if n not in lost[name]] for name in ("image", "text")}
    rows = {name: torch.tensor(values, dtype=torch.int64) for name, values in has.items()}
    parts = [texts[numbers[row]] for row in has["text"]]
    offsets = torch.tensor(np.cumsum([0, *map(len, parts)]), dtype=torch.int64)
    stack = [pictures[numbers[row]] for row in has["image"]]
    values = torch.stack(stack) if stack else torch.zeros(0, 3, SIDE, SIDE, dtype=torch.uint8)
    groups = {
        f"image/3x{SIDE}x{SIDE}": ImageGroup(torch.zeros_like(rows["image"]), rows["image"], values),
        "text": TextGroup(
            torch.ones_like(rows["text"]),
            rows["text"],
            offsets,
            torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8) if parts else torch.zeros(0).byte(),
        ),
    }
    present = torch.zeros(len(numbers), 2, dtype=torch.bool)
    for column, name in enumerate(("image", "text")):
        present[rows[name], column] = True
    target = torch.tensor([[float(n % 3)] for n in numbers]).view(len(numbers), 1)
    return Batch([f"r{n}" for n in numbers], torch.tensor(numbers), present, {"answer": target}, groups)
