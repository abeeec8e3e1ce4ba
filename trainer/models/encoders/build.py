"""Encoders by modality kind. One encoder serves all modalities of a batch group, with parameters per modality.

Every encoder takes (group, layout): the packed group, and where its rows lie, as `lay_out` has worked it out on the
CPU; it gives (P, tokens, D) and says how many `tokens` a row becomes. Of timed modalities a row is an object, of which
a pair has any number: a second stage brings them to their times and gives the tokens of all pairs. All of them accept
zero rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from data_shards import DatasetSchema, ModalitySpec
from data_shards.records.statistics import SplitStatistics
from parallel import CodeTable, Dispatcher
from trainer.config.sections import ModelConfig
from trainer.models.convolutions.sizes import SIDE
from trainer.models.encoders.codes import CodeEmbedding, CodesEncoder, TimedCodesEncoder
from trainer.models.encoders.grid_over_time import GridOverTime
from trainer.models.encoders.image import ImageEncoder
from trainer.models.encoders.layout import Encoder
from trainer.models.encoders.over_time import OverTime
from trainer.models.encoders.own.pretrained import own_encoder
from trainer.models.encoders.series import SeriesEncoder
from trainer.models.encoders.text import TextEncoder
from trainer.models.encoders.timed import TimedEncoder
from trainer.models.encoders.tokens_over_time import TokensOverTime
from trainer.models.encoders.vector import VectorEncoder
from trainer.models.encoders.waveform import WaveformEncoder
from trainer.models.layers.standardise import Standardiser
from trainer.models.numbers.kernels import DETAILS
from trainer.models.numbers.scale import NormalScores
from trainer.models.pretrained.load import no_encoder

CODE_SCALE = 0.3  # of initial rows, as modalities' embeddings have it


def build_encoder(
    indices: list[int],
    schema: DatasetSchema,
    statistics: SplitStatistics,
    config: ModelConfig,
    dispatcher: Dispatcher,
    seed: int,
    weights: bool = True,
) -> Encoder:
    """The encoder of one encoder group (its modalities' numbers in `indices`).

    Args:
        dispatcher, seed: of the model; large tables are spread over its ranks, and drawn by row.
        weights: False = of pretrained encoders shapes are enough.

    Raises:
        BackboneError: a pretrained encoder cannot be had, or does not fit.
        ValueError: times without horizon, codes without vocabulary, or a shape that the recipe's patch does not divide.
    """
    specs = [schema.modalities[index] for index in indices]
    if specs[0].kind in ("codes", "series") and specs[0].name in config.encoders:
        raise ValueError(no_encoder(specs[0]))
    if specs[0].kind == "codes":
        return _codes_encoder(specs, statistics, config, dispatcher, seed)
    encoder: Encoder
    if specs[0].name in config.encoders:
        encoder = own_encoder(specs[0], config.encoders[specs[0].name], config.dim, weights)
    else:
        encoder = _object_encoder(specs, statistics, config)
    if not specs[0].timed:
        return encoder
    horizon = [_horizon(spec) for spec in specs]
    over_time = _over_time(len(specs), encoder.tokens, config.objects.irregularity, config)
    return TimedEncoder(encoder, over_time, horizon)


def _object_encoder(specs: list[ModalitySpec], statistics: SplitStatistics, config: ModelConfig) -> Encoder:
    first, blocks, dim = specs[0], len(specs), config.dim
    if first.kind == "text":
        return TextEncoder(config.text.positions or declared_positions(specs, config), config.text, dim, blocks)
    match first.kind:
        case "series":
            widths, horizon = [spec.width for spec in specs], [_horizon(spec) for spec in specs]
            scale, scores = _scale(specs, statistics, config), None
            if config.series.statistics != "none":
                scores = scale if isinstance(scale, NormalScores) else _normal_scores(specs, statistics)
            shapes = config.series.statistics == "fine_kernels"
            return SeriesEncoder(widths, horizon, scale, scores, config.series, config.bins, dim, shapes)
        case "vector":
            piecewise = config.vector.numbers == "piecewise"
            scale = _normal_scores(specs, statistics) if piecewise else _scale(specs, statistics, config)
            return VectorEncoder(first.width, scale, piecewise, config.vector.tokens, dim, blocks)
    standardiser = _standardiser(specs, statistics, config.series.clip)
    match first.kind:
        case "image":
            return ImageEncoder(first.shape, standardiser, config.image, dim, blocks)
        case "waveform":
            waveform = config.waveform
            detail, fine = DETAILS.get(waveform.statistics), waveform.statistics == "fine_kernels"
            sizes = (waveform.patch, waveform.tokens, dim, blocks)
            return WaveformEncoder(first.width, standardiser, *sizes, detail, standardised=fine)
        case _:
            raise AssertionError(f"no encoder for {first.kind}")


def _codes_encoder(
    specs: list[ModalitySpec], statistics: SplitStatistics, config: ModelConfig, dispatcher: Dispatcher, seed: int
) -> Encoder:
    for spec in specs:
        if not spec.codes:
            raise ValueError(f"modality {spec.name} (codes) has no vocabulary yet: pack the data, which learns it")
    sizes = [spec.codes for spec in specs]
    key = (seed, "codes", *(spec.name for spec in specs))
    table = CodeTable(sum(sizes), config.dim, key, dispatcher, config.codes.spread_above, CODE_SCALE)
    valued = any(spec.valued for spec in specs)
    # Of codes without values there is nothing to scale.
    scale = _scale(specs, statistics, config) if valued else _standardiser(specs, statistics, config.series.clip)
    embedding = CodeEmbedding(table, sizes, valued, scale)
    if not specs[0].timed:
        return CodesEncoder(embedding, config.codes.tokens, config.dim)
    over_time = _over_time(len(specs), 1, config.codes.irregularity, config)
    return TimedCodesEncoder(embedding, over_time, [_horizon(spec) for spec in specs])


def _over_time(blocks: int, tokens: int, irregularity: str, config: ModelConfig) -> OverTime:
    if irregularity == "tokens":
        return TokensOverTime(blocks, tokens, config.objects.time_dim, config.bins, config.dim)
    return GridOverTime(blocks, tokens, irregularity, config.objects, config.bins, config.dim)


def declared_positions(specs: Iterable[ModalitySpec], config: ModelConfig) -> int:
    """Positions of the longest text that the schema allows: the table of checkpoints whose recipe names no number."""
    return max((-(-(spec.max_length or 1) // config.text.stride) for spec in specs if spec.kind == "text"), default=1)


def sized(config: ModelConfig, schema: DatasetSchema, statistics: SplitStatistics) -> ModelConfig:
    """The architecture with what the training part decides, which a checkpoint then keeps in its recipe.

    Other data that the model later meets may be longer: the sizes of its parameters never follow them. Pictures are
    read by convolutions where they are large enough for one; what a recipe leaves open without this means patches, as
    it did in checkpoints of before.
    """
    text, image = config.text, config.image
    texts = [statistics.modalities[spec.name].max[0] for spec in _from_nothing("text", schema, config)]
    if texts and text.positions is None:
        text = text.model_copy(update={"positions": max(1, math.ceil(max(texts) / text.stride))})
    pictures = [spec.shape[1:] for spec in _from_nothing("image", schema, config)]
    if pictures and image.network is None:
        network = "convolutions" if min(map(min, pictures)) >= SIDE else "patches"
        image = image.model_copy(update={"network": network})
    return config.model_copy(update={"text": text, "image": image})


def _scale(specs: list[ModalitySpec], statistics: SplitStatistics, config: ModelConfig) -> Standardiser | NormalScores:
    if config.scale == "quantile":
        return _normal_scores(specs, statistics)
    return _standardiser(specs, statistics, config.series.clip)


def _normal_scores(specs: list[ModalitySpec], statistics: SplitStatistics) -> NormalScores:
    return NormalScores({spec.name: statistics.modalities[spec.name] for spec in specs})


def _from_nothing(kind: str, schema: DatasetSchema, config: ModelConfig) -> list[ModalitySpec]:
    """Modalities of this kind without a pretrained encoder."""
    return [spec for spec in schema.modalities if spec.kind == kind and spec.name not in config.encoders]


def _standardiser(specs: list[ModalitySpec], statistics: SplitStatistics, clip: float) -> Standardiser:
    tables = [statistics.modalities[spec.name] for spec in specs]
    return Standardiser([list(table.mean) for table in tables], [list(table.std) for table in tables], clip)


def _horizon(spec: ModalitySpec) -> float:
    if spec.horizon is None:
        raise ValueError(f"{spec.kind} {spec.name} has no horizon: declare the length of its observation window")
    return spec.horizon
