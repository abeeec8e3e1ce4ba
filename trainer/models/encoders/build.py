"""Encoders by modality kind. One encoder serves all modalities of a batch group, with parameters per modality.

Every encoder takes (group, layout): the packed group, and where its pairs lie, as `lay_out` has worked it out on the
CPU; it gives (P, tokens, D) and says how many `tokens` a pair becomes. All of them accept zero pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from data_shards import DatasetSchema, ModalitySpec
from data_shards.records.statistics import SplitStatistics
from trainer.config.sections import ModelConfig
from trainer.models.encoders.image import ImageEncoder
from trainer.models.encoders.layout import Encoder
from trainer.models.encoders.series import SeriesEncoder
from trainer.models.encoders.text import TextEncoder
from trainer.models.encoders.vector import VectorEncoder
from trainer.models.encoders.waveform import WaveformEncoder
from trainer.models.layers.standardise import Standardiser


def build_encoder(
    indices: list[int], schema: DatasetSchema, statistics: SplitStatistics, config: ModelConfig
) -> Encoder:
    """The encoder of one batch group (its modalities' numbers in `indices`).

    Raises:
        ValueError: a series without horizon, or a shape that the recipe's patch does not divide.
    """
    specs = [schema.modalities[index] for index in indices]
    first, blocks, dim = specs[0], len(specs), config.dim
    match first.kind:
        case "series":
            return SeriesEncoder(
                [spec.width for spec in specs],
                [_horizon(spec) for spec in specs],
                _standardiser(specs, statistics, config.series.clip),
                config.series,
                config.bins,
                dim,
            )
        case "vector":
            return VectorEncoder(
                first.width, _standardiser(specs, statistics, config.series.clip), config.vector.tokens, dim, blocks
            )
        case "image":
            return ImageEncoder(
                first.shape, _standardiser(specs, statistics, config.series.clip), config.image.patch, dim, blocks
            )
        case "waveform":
            standardiser = _standardiser(specs, statistics, config.series.clip)
            return WaveformEncoder(
                first.width, standardiser, config.waveform.patch, config.waveform.tokens, dim, blocks
            )
        case "text":
            return TextEncoder(config.text.positions or declared_positions(specs, config), config.text, dim, blocks)


def declared_positions(specs: Iterable[ModalitySpec], config: ModelConfig) -> int:
    """Positions of the longest text that the schema allows: the table of checkpoints whose recipe names no number."""
    return max((-(-(spec.max_length or 1) // config.text.stride) for spec in specs if spec.kind == "text"), default=1)


def sized(config: ModelConfig, schema: DatasetSchema, statistics: SplitStatistics) -> ModelConfig:
    """The architecture with the numbers that the training part decides, which a checkpoint then keeps in its recipe.

    Other data that the model later meets may be longer: the sizes of its parameters never follow them.
    """
    texts = [statistics.modalities[spec.name].max[0] for spec in schema.modalities if spec.kind == "text"]
    if not texts or config.text.positions is not None:
        return config
    positions = max(1, math.ceil(max(texts) / config.text.stride))
    return config.model_copy(update={"text": config.text.model_copy(update={"positions": positions})})


def _standardiser(specs: list[ModalitySpec], statistics: SplitStatistics, clip: float) -> Standardiser:
    tables = [statistics.modalities[spec.name] for spec in specs]
    return Standardiser([list(table.mean) for table in tables], [list(table.std) for table in tables], clip)


def _horizon(spec: ModalitySpec) -> float:
    if spec.horizon is None:
        raise ValueError(f"series {spec.name} has no horizon: declare the length of its observation window")
    return spec.horizon
