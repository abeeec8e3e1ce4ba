"""What a batch of average records asks of a FuseMoE model: features for its counter, elements kept for the backward."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Activations:
    """Bytes of activations of a batch: what is kept for the backward pass, and what that needs beside while it works.

    `inputs` are those of one block, which is all that a block keeps if it is computed again.
    """

    encoders: float
    block: float
    inputs: float
    heads: float
    encoders_working: float
    block_working: float
    heads_working: float


def activations(counter: FlopCounter, features: list[float], width: int, cpu: bool = False) -> Activations:
    """By counting the operands that operations save.

    Args:
        width: bytes of a number that is not always fp32.
        cpu: of the processor's kernels, which keep dropout's masks as numbers and pad the rows of experts in bf16.
    """
    config = counter.config
    values = dict(zip(counter.features, features, strict=True))
    tokens, row = counter.count_tokens(values), config.dim * width
    latents = config.latents if config.pooling == "attention" else 1
    pooled = tokens * ((3 if config.pooling == "attention" else 2) * row + 8 * latents)
    heads = values["records"] * (2 * latents * row + 6 * row * len(counter.tasks))
    return Activations(
        encoders=_encoders(counter, values, width),
        block=_block(counter, values, width, cpu),
        inputs=tokens * row,
        heads=pooled + heads,
        # Gradients of a view and of its parts; of both sides of a block's two sums; of every latent's weighted tokens.
        encoders_working=tokens * 4 * row,
        block_working=tokens * 4 * row,
        heads_working=tokens * latents * row,
    )


def activation_elements(counter: FlopCounter, features: list[float]) -> tuple[float, float]:
    """Elements kept for the backward pass of (one fusion block, everything else) in fp32."""
    found = activations(counter, features, 4, cpu=True)
    return found.block / 4, (found.encoders + found.heads) / 4


def _block(counter: FlopCounter, values: dict[str, float], width: int, cpu: bool) -> float:
    config, moe = counter.config, counter.config.moe
    tokens, dim, k = counter.count_tokens(values), config.dim, moe.top_k
    factorized = counter.attention == "factorized"
    # Inputs of two norms, what they give, outputs, and of each attention queries, keys, values and what is read.
    rows = (16 if factorized else 9) * dim + moe.shared_expert_hidden
    rows += k * (2 * dim + (moe.hidden or 4 * dim))
    if cpu and width == 2:
        rows += k * dim
    if config.ffn_hidden:
        rows += 2 * dim + 2 * config.ffn_hidden
    # Means and deviations of norms, sums of attention's weights, the modality of the statistics.
    small = (
        (36 if factorized else 28) + 4 * (2 if factorized else 1) * config.heads + 4 * len(counter.schema.modalities)
    )
    # Three ids of 8 bytes and a weight for each expert of a token.
    token = rows * width + small + 28 * k
    if config.dropout:
        token += (3 if config.ffn_hidden else 2) * dim * (width if cpu else 1)
    decision = 4 * moe.experts + ((4 * dim + 36 * moe.experts) if moe.noise else 0)
    return tokens * token + counter.count_decisions(values) * decision


def _encoders(counter: FlopCounter, values: dict[str, float], width: int) -> float:
    total = 0.0
    for name, indices in counter.layout.items():
        total += _encoder(counter, name, indices, values, width)
    return total


def _encoder(counter: FlopCounter, name: str, indices: list[int], values: dict[str, float], width: int) -> float:
    config, dim = counter.config, counter.config.dim
    spec, pairs = counter.schema.modalities[indices[0]], values[f"pairs/{name}"]
    rows = pairs * counter.tokens[name]
    match spec.kind:
        case "series":
            return _series(counter, indices, values, rows, pairs, width)
        case "text":
            return values["positions"] * dim * (3 + 18 * config.text.layers) * width
        case "vector":
            return pairs * (spec.width + 4 * dim) * width
        case "image":
            return rows * (spec.shape[0] * config.image.patch**2 + 4 * dim) * width
        case "waveform":
            return values[f"patches/{name}"] * (spec.width * config.waveform.patch + 5 * dim) * width


def _series(
    counter: FlopCounter, indices: list[int], values: dict[str, float], rows: float, pairs: float, width: int
) -> float:
    """Times and the attention over them are fp32."""
    config, series = counter.config, counter.config.series
    widest = max(counter.schema.modalities[index].width for index in indices)
    total = rows * 16.0
    if series.irregularity != "mtand":
        total += rows * widest * 5 * series.kernel * width
    if series.irregularity != "imputation":
        score = config.bins * series.heads
        total += rows * widest * (series.heads + 1) * width
        total += values["events"] * (4 * (2 * score + 2 * series.time_dim) + 16) + pairs * widest * 3 * score * 4
    if series.irregularity == "utde":
        total += rows * 6 * config.dim * width
    return total
