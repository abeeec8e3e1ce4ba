"""A source, from its name and options, packed."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_shards import create_source, pack
from data_shards.crew import Crew
from data_shards.paths import absolute_url
from data_shards.shards.manifest import LENGTHS
from data_shards.sources import known_sources, source_class
from data_shards.sources.base import Source
from launch.datasets.pack_progress import shown
from launch.errors import UsageError
from launch.output.tables import print_json_line, print_table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackSettings:
    """How a source is packed, whatever it is; as the arguments of `data_shards.pack`.

    Attributes:
        workers: 0: one for each CPU.
    """

    out: str
    workers: int = 0
    shard_mb: int = 64
    overwrite: bool = False
    append: bool = False
    lease_s: float = 60.0


def pack_source(
    name: str,
    folder: str | None,
    splits: str | None,
    options: Sequence[str],
    settings: PackSettings,
    crew: Crew | None = None,
) -> None:
    """Pack a source; prints the report as the last line.

    Args:
        crew: who works; processes of this machine if it is None.
    """
    out = absolute_url(settings.out)
    source = make_source(name, _source_options(name, {"path": folder, "splits": splits}, options))
    logger.info("packing %s into %s", name, out)
    with shown() as told:
        report = pack(
            source,
            out,
            workers=settings.workers or os.cpu_count() or 1,
            shard_bytes=settings.shard_mb << 20,
            overwrite=settings.overwrite,
            append=settings.append,
            lease_s=settings.lease_s,
            crew=crew,
            told=told,
        )
    rows = [(key, report[key]) for key in ("records", "observations", "shards", "bytes", "seconds")]
    rows += [("shards complete before", report["shards_before"])] * bool(report["shards_before"])
    notes = [note for note in sorted(report["source"].get("notes", {}).items()) if note not in rows]
    lengths = report["source"].get(LENGTHS, {})
    longest = [(f"longest {name}", own["longest"]) for name, own in lengths.items()]
    windows = report["source"].get("horizons_from_longest_times", {})
    notes += [(f"horizon of {name} (longest time seen)", value) for name, value in windows.items()]
    print_table(f"packed {report['url']}", ("what", "how much"), rows + longest + notes)
    print_json_line(report)


def make_source(name: str, settings: Mapping[str, Any]) -> Source:
    """A source by its name. Raises UsageError: there is none, or a library is missing; ValueError: wrong options."""
    if name not in known_sources():
        raise UsageError(f"unknown source {name!r}; sources are {', '.join(known_sources())}")
    try:
        return create_source(name, settings)
    except ImportError as error:
        raise UsageError(f"source {name} needs a library that is not installed: {error}") from error


def _source_options(name: str, flags: dict[str, str | None], options: Sequence[str]) -> dict[str, Any]:
    """Flags and `key=value` pairs as options of this source. Raises UsageError."""
    if name not in known_sources():
        raise UsageError(f"unknown source {name!r}; sources are {', '.join(known_sources())}")
    fields = source_class(name).Options.model_fields
    shown = {"path": "--source", "splits": "--splits"}
    settings: dict[str, Any] = {}
    for key, value in flags.items():
        if value is not None and key not in fields:
            raise UsageError(f"source {name} takes no {shown[key]}")
        if value is not None:
            settings[key] = value
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or key not in fields:
            raise UsageError(f"-o {option!r}: write KEY=VALUE; source {name} takes {', '.join(fields) or 'no options'}")
        if key in settings:
            raise UsageError(f"-o {option}: {key} is {settings[key]!r} already; give it once")
        settings[key] = value
    for key, field in fields.items():
        if field.is_required() and key not in settings:
            raise UsageError(f"source {name} needs {shown.get(key, f'-o {key}=...')}: {field.description}")
    return settings
