"""Recipes for data that encoders have embedded: what the data say is filled in, what contradicts them is refused."""

from __future__ import annotations

from collections.abc import Mapping

from data_shards import DatasetSchema
from data_shards.shards.lineage import Embedded
from trainer.config.encoders import PretrainedConfig
from trainer.config.errors import RecipeError
from trainer.config.job_types import FUSEMOE
from trainer.config.run_config import RunConfig


def with_embedded(config: RunConfig, schema: DatasetSchema, embedded: Mapping[str, Embedded]) -> RunConfig:
    """The recipe with an entry of `model.encoders` for each vector of the schema that a pretrained encoder has made.

    Such a vector is read as what it is with or without an entry, so that a recipe of the original data holds for the
    embedded ones, and gives the same model.

    Raises:
        RecipeError: an entry asks for other tokens than were embedded, or for training what is not there.
    """
    if config.job != FUSEMOE:
        return config
    entries = dict(config.model.encoders)
    for spec in schema.modalities:
        if not spec.encoder or spec.name not in embedded:
            continue
        own, key = embedded[spec.name], f"model.encoders.{spec.name}"
        entry = entries.setdefault(
            spec.name,
            PretrainedConfig(
                source=own.source,
                tokens=own.tokens,
                dtype=own.dtype,  # type: ignore[arg-type]
                max_tokens=own.max_tokens,
                max_seconds=own.max_seconds,
            ),
        )
        if entry.train != "none":
            raise RecipeError(
                f"{key}.train={entry.train}, and the data hold what encoder {spec.encoder[:12]} has said of "
                f"{spec.name}: set train=none, or train on the original data"
            )
        if entry.tokens != own.tokens:
            raise RecipeError(
                f"{key}.tokens={entry.tokens}, and {spec.name} was embedded with tokens={own.tokens}: give that, or "
                "embed the original data again"
            )
    return config.model_copy(update={"model": config.model.model_copy(update={"encoders": entries})})
