"""The verbs `pack` and `inspect`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from data_shards import create_source, open_manifest, pack, summary
from data_shards.sources import SOURCES, source_class
from launch.errors import UsageError
from launch.output import print_json_line, print_table

logger = logging.getLogger(__name__)


def pack_source(
    name: str,
    folder: str | None,
    out: str,
    splits: str | None,
    options: Sequence[str],
    workers: int,
    shard_mb: int,
    overwrite: bool,
) -> None:
    """Pack a source; prints the report as the last line."""
    settings = _source_options(name, {"path": folder, "splits": splits}, options)
    try:
        source = create_source(name, settings)
    except ImportError as error:
        raise UsageError(f"source {name} needs a library that is not installed: {error}") from error
    logger.info("packing %s into %s", name, out)
    report = pack(
        source, out, workers=workers or os.cpu_count() or 1, shard_bytes=shard_mb << 20, overwrite=overwrite
    )  # fmt: skip
    notes = report["source"].get("notes", {})
    rows = [(key, report[key]) for key in ("records", "observations", "shards", "bytes", "seconds")]
    print_table(f"packed {report['url']}", ("what", "how much"), rows + sorted(notes.items()))
    print_json_line(report)


def _source_options(name: str, flags: dict[str, str | None], options: Sequence[str]) -> dict[str, Any]:
    """Flags and `key=value` pairs as options of this source. Raises UsageError."""
    if name not in SOURCES:
        raise UsageError(f"unknown source {name!r}; sources are {', '.join(sorted(SOURCES))}")
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
        settings[key] = value
    for key, field in fields.items():
        if field.is_required() and key not in settings:
            raise UsageError(f"source {name} needs {shown.get(key, f'-o {key}=...')}: {field.description}")
    return settings


def inspect_data(url: str, as_json: bool) -> None:
    """Tables of a packed data set on stdout."""
    facts = summary(open_manifest(url))
    if as_json:
        print_json_line(facts)
        return
    console = Console()
    console.print(
        f"[bold]{facts['name']}[/bold]  {facts['records']:,} records, {facts['observations']:,} observations, "
        f"{facts['bytes'] / 2**20:,.1f} MiB in {facts['shards']} shards\n{facts['url']}\n"
        f"digest {facts['digest']}\nsource {json.dumps(facts['source'])}",
        highlight=False,
    )
    _print_modalities(facts, console)
    _print_patterns(facts, console)
    for split, parts in facts["splits"].items():
        _print_split(split, parts, console)


def _print_modalities(facts: dict[str, Any], console: Console) -> None:
    rows = []
    for row in facts["modalities"]:
        length = row["length"] or {}
        what = ", ".join(row["channels"]) or "x".join(map(str, row["shape"]))
        share = f"{row['share']:.1%}"
        rows.append((row["name"], row["kind"], what, row["present"], share, length.get("p50"), length.get("p100")))
    columns = ("modality", "kind", "channels or shape", "present", "share", "median length", "longest")
    print_table("modalities", columns, rows, console)


def _print_patterns(facts: dict[str, Any], console: Console) -> None:
    patterns = facts["patterns"]
    rows = [(row["records"], ", ".join(row["absent"]) or "nothing") for row in patterns["most_frequent"]]
    title = f"what is absent together ({patterns['count']} patterns, {patterns['complete']:,} records have everything)"
    print_table(title, ("records", "absent"), rows, console)


def _print_split(split: str, parts: dict[str, Any], console: Console) -> None:
    rows = []
    for part, facts in parts.items():
        for task, labels in facts["tasks"].items():
            rows.append((part, facts["records"], task, labels["kind"], labels["labelled"], _labels(labels)))
    print_table(f"split {split}", ("part", "records", "task", "kind", "labelled", "labels"), rows, console)


def _labels(labels: dict[str, Any]) -> str:
    if "counts" in labels:
        return ", ".join(f"{name} {count:,}" for name, count in labels["counts"].items())
    pairs = zip(labels["mean"], labels["std"], strict=True)
    return ", ".join(f"{mean:.3g} ± {std:.3g}" for mean, std in pairs)
