"""What a batch of average records asks of a FuseMoE model: features for its counter, elements kept for the backward."""

from __future__ import annotations

import torch

from data_shards.records.statistics import SplitStatistics
from trainer.models.flops import FlopCounter


def expected_features(counter: FlopCounter, statistics: SplitStatistics, records: int) -> list[float]:
    """Mean features of a batch of `records`, modalities taken as present independently of each other."""
    modalities, tables = counter.schema.modalities, statistics.modalities
    presence_M = torch.tensor(
        [tables[spec.name].present / max(1, statistics.records) for spec in modalities], dtype=torch.float64
    )
    values = dict.fromkeys(counter.features, 0.0) | {"records": float(records)}
    for name, indices in counter.layout.items():
        values[f"pairs/{name}"] = records * float(presence_M[indices].sum())
    if counter.config.missing_embedding:
        values["indicators"] = records * float((1 - presence_M).sum())
    for spec, presence in zip(modalities, presence_M.tolist(), strict=True):
        table = tables[spec.name]
        if spec.kind == "series":
            values["events"] += records * sum(table.count) / max(1, statistics.records)
        if spec.kind == "text":
            stride = counter.config.text.stride
            length = (table.mean[0] + (stride - 1) / 2) / stride
            values["positions"] += records * presence * length
            values["text_squares"] += records * presence * (length**2 + (table.std[0] / stride) ** 2)
        if spec.kind == "waveform":
            patch = counter.config.waveform.patch
            samples = table.count[0] / max(1, table.present)
            values[f"patches/{spec.group}"] += records * presence * (samples + (patch - 1) / 2) / patch
    values["squares"] = records * counter.expected_squares(presence_M)
    return [values[name] for name in counter.features]


def activation_elements(counter: FlopCounter, features: list[float]) -> tuple[float, float]:
    """Elements kept for the backward pass of (one fusion block, everything else), by counting saved operands."""
    config, moe = counter.config, counter.config.moe
    values = dict(zip(counter.features, features, strict=True))
    tokens, dim, k = counter.count_tokens(values), config.dim, moe.top_k
    hidden = moe.hidden or 4 * dim
    attention = {"per_modality": 6, "joint": 6, "factorized": 14}[counter.attention] * dim
    routed = dim + k * (2 * dim + hidden) + 4 * moe.experts + 2 * moe.shared_expert_hidden
    dense = dim + 2 * config.ffn_hidden if config.ffn_hidden else 0
    block = tokens * (5 * dim + attention + routed + dense)
    outside = tokens * dim * (4 + config.latents)
    for name, indices in counter.layout.items():
        spec, pairs = counter.schema.modalities[indices[0]], values[f"pairs/{name}"]
        rows = pairs * counter.tokens[name]
        match spec.kind:
            case "series":
                widest = max(counter.schema.modalities[index].width for index in indices)
                inputs = widest * (5 * config.series.kernel + config.series.heads + 1)
                score = config.bins * config.series.heads
                outside += rows * (3 * inputs + 6 * dim) + values["events"] * (3 * score + 2 * config.series.time_dim)
            case "text":
                outside += values["positions"] * dim * (3 + 18 * config.text.layers)
            case "vector":
                outside += pairs * (spec.width + 4 * dim)
            case "image":
                outside += rows * (spec.shape[0] * config.image.patch**2 + 4 * dim)
            case "waveform":
                outside += values[f"patches/{name}"] * (spec.width * config.waveform.patch + 5 * dim)
    return block, outside
