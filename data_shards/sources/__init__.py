"""Where records come from. A source is made by name from options: ``create_source("digits", {"seed": "1"})``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from data_shards.sources.base import Source

__all__ = ["SOURCES", "create_source", "known_sources", "source_class"]

# name -> (module, class); imported on use, because each needs its own libraries
SOURCES: dict[str, tuple[str, str]] = {
    "cmu_mosei": ("cmu.source", "CmuMosei"),
    "cmu_mosi": ("cmu.source", "CmuMosi"),
    "digits": ("digits", "Digits"),
    "easy_vqa": ("easy_vqa", "EasyVQA"),
    "image_text": ("image_text.source", "ImageText"),
    "mimic4": ("mimic4.source", "Mimic4"),
    "pam": ("pam", "Pam"),
    "physionet2012": ("physionet2012", "PhysioNet2012"),
    "physionet2019": ("physionet2019", "PhysioNet2019"),
    "planted_times": ("planted_times", "PlantedTimes"),
    "ptbxl": ("ptbxl", "PtbXl"),
    "synthetic": ("synthetic", "Synthetic"),
    "tables": ("tables.source", "Tables"),
}


# Installed packages name sources of their own in this group: NAME = module:Class
ENTRY_POINTS = "fleximoe.sources"


def known_sources() -> list[str]:
    """Names of our own sources and of installed ones."""
    return sorted({*SOURCES, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def source_class(name: str) -> type[Source]:
    """The class of a source; ValueError lists the known names."""
    found: type[Source]
    if name in SOURCES:
        module, attribute = SOURCES[name]
        found = getattr(import_module(f"data_shards.sources.{module}"), attribute)
        return found
    for point in entry_points(group=ENTRY_POINTS, name=name):
        found = point.load()
        return found
    raise ValueError(f"source {name!r} is none of {', '.join(known_sources())}")


def create_source(name: str, options: Mapping[str, Any] | None = None) -> Source:
    """Make a source.

    Args:
        name: a key of ``SOURCES``. options: its options; text is converted to the option's type.

    Raises:
        ValueError: an unknown source, an unknown or illegal option, or data that cannot be found.
    """
    cls = source_class(name)
    try:
        parsed = cls.Options.model_validate(dict(options or {}))
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(cls.Options.model_fields)
        raise ValueError(
            f"source {name}, option {'.'.join(map(str, first['loc']))}: {first['msg']}; options are {known}"
        ) from error
    return cls(parsed)
