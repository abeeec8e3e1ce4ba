"""The data section of a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_SECRET = ("secret", "password", "token", "key")


class MixtureEntry(BaseModel):
    """One data set of a mixture."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(min_length=1, description="folder of the packed data set, as data.url")
    split: str = Field("default", description="named split of this data set")
    weight: float = Field(
        1.0, gt=0, description="how often a record of this data set is seen, relative to the others' records"
    )
    tasks: list[str] | None = Field(None, description="tasks of this data set; null = all")


class DataConfig(BaseModel):
    """Which data set, which part of it, in what order, and what to do when bytes are damaged."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field("", description="folder of the packed data set: a path, or a file, s3, gs, http(s) or memory URL")
    mixture: dict[str, MixtureEntry] = Field(
        default_factory=dict,
        description="several data sets in one run instead of url: name -> url, split, weight, tasks; modalities and "
        "tasks are then called NAME-modality and NAME-task",
    )
    split: str = Field("default", description="named split of the data set that training and evaluation use")
    follow: bool = Field(
        False,
        description="let a run that goes on move to the newer version of a data set that has grown (pack --append); it "
        "begins an epoch there",
    )
    seed: int = Field(0, description="seed of the record order; the order of an epoch is a function of (seed, epoch)")
    workers: int = Field(0, ge=0, le=256, description="loader processes per rank; 0 reads inside the training process")
    prefetch: int = Field(2, ge=1, le=64, description="steps that each loader process prepares in advance")
    window_chunks: int = Field(16, ge=1, description="chunks that are shuffled together; larger mixes more, holds more")
    memory_bytes: int = Field(256 << 20, ge=1 << 20, description="bytes of chunks kept in memory by each reader")
    cache_dir: str | None = Field(None, description="folder for a verified copy of remote shards; none if not set")
    cache_bytes: int = Field(64 << 30, ge=1 << 20, description="most bytes kept in cache_dir")
    retries: int = Field(4, ge=0, le=20, description="further attempts after a failed read")
    retry_delay_s: float = Field(
        0.2, gt=0, description="mean wait before the first further attempt, doubled each time (s)"
    )
    on_error: Literal["raise", "skip"] = Field("raise", description="damaged records: stop, or skip and count")
    max_skipped: int = Field(0, ge=0, description="records that one rank may skip before it stops (on_error: skip)")
    storage_options: dict[str, Any] = Field(
        default_factory=dict, description="options of the file system, e.g. endpoint_url; never credentials"
    )

    @field_validator("mixture")
    @classmethod
    def _names(cls, mixture: dict[str, MixtureEntry]) -> dict[str, MixtureEntry]:
        for name in mixture:
            if not re.fullmatch(r"[A-Za-z0-9_]{1,24}", name):
                raise ValueError(f"mixture name {name!r} must be 1 to 24 letters, digits or '_'")
        return mixture

    @model_validator(mode="after")
    def _one_way(self) -> DataConfig:
        if bool(self.url) == bool(self.mixture):
            both = "both are given" if self.url else "neither is given"
            raise ValueError(f"data.url is one data set, data.mixture are several: give one of the two ({both})")
        return self

    @field_validator("storage_options")
    @classmethod
    def _no_words_for_booleans(cls, options: dict[str, Any]) -> dict[str, Any]:
        # Nobody knows the type of a file system's option, and the text "no" would count as true.
        for name, value in options.items():
            if isinstance(value, str) and value.lower() in ("yes", "no", "on", "off"):
                raise ValueError(f"storage_options.{name}: {value} is text in YAML 1.2; write true or false")
        return options

    @field_validator("storage_options")
    @classmethod
    def _no_credentials(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in _option_names(options):
            if any(word in name.lower() for word in _SECRET):
                raise ValueError(
                    f"storage_options.{name} looks like a credential; recipes are logged. "
                    "Give credentials through the environment or the provider's own files"
                )
        return options


def _option_names(options: dict[str, Any]) -> Iterator[str]:
    """Names of all options that hold a value, nested ones included; ``token: anon`` is no secret."""
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _option_names(value)
        elif value not in ("anon", None):
            yield name
