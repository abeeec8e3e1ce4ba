"""The verbs `pack` and `inspect`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from data_shards import create_source, open_manifest, pack, summary
from data_shards.sources import SOURCES, source_class
from launch.errors import UsageError
from launch.output import print_json_line, print_table

logger = logging.getLogger(__name__)

VALUE_COLUMNS = ("modality", "channel", "count", "mean", "std", "min", "max", "farthest")
MOST_CHANNELS, FEW_CHANNELS = 40, 8


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
    rows = [(key, report[key]) for key in ("records", "observations", "shards", "bytes", "seconds")]
    notes = [note for note in sorted(report["source"].get("notes", {}).items()) if note not in rows]
    print_table(f"packed {report['url']}", ("what", "how much"), rows + notes)
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


def inspect_data(url: str, as_json: bool, html: str | None) -> None:
    """Tables of a packed data set on stdout, and the same with pictures as a page."""
    facts = summary(open_manifest(url))
    if html is not None:
        from launch.data_page import data_page
        from launch.html_page import write_page

        write_page(data_page(facts), Path(html))
        logger.info("the page is %s", html)
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
    _print_sampling(facts, console)
    for split, parts in facts["splits"].items():
        _print_split(split, parts, console)
    for split, rows in list(facts["values"].items())[:1]:  # further splits are much the same; the page has them
        title = f"values in the train part of split {split} (farthest: from the mean, in standard deviations)"
        print_table(title, VALUE_COLUMNS, value_table(rows), console)
    for warning in facts["warnings"]:
        console.print(f"[bold red]look at this:[/] {escape(warning)}", highlight=False)
    if not facts["groups_known"]:
        console.print("no record names a group (e.g. its patient), so whether one is in two parts was not looked at")


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


def _print_sampling(facts: dict[str, Any], console: Console) -> None:
    rows = [
        (name, channel, f"{own['share']:.1%}", own["per_record"], own["median_gap"], series["time_unit"])
        for name, series in facts["sampling"]["series"].items()
        for channel, own in series["channels"].items()
    ]
    title = f"how series are sampled (from {facts['sampling']['records']:,} records)"
    columns = ("series", "channel", "records with it", "values each", "median gap", "unit of time")
    if rows:
        print_table(title, columns, rows, console)


def _print_split(split: str, parts: dict[str, Any], console: Console) -> None:
    rows = []
    for part, facts in parts.items():
        for task, labels in facts["tasks"].items():
            own = (part, facts["records"], facts["groups"] or None, task, labels["kind"], labels["labelled"])
            rows.append((*own, label_text(labels)))
    print_table(f"split {split}", ("part", "records", "groups", "task", "kind", "labelled", "labels"), rows, console)


def label_text(labels: dict[str, Any]) -> str:
    """Class counts, or mean and deviation of a regression target."""
    if "counts" in labels:
        return ", ".join(f"{name} {count:,}" for name, count in labels["counts"].items())
    pairs = zip(labels["mean"], labels["std"], strict=True)
    return ", ".join(f"{mean:.3g} ± {std:.3g}" for mean, std in pairs)


def value_table(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Rows of ``VALUE_COLUMNS``; of modalities with very many channels the first few."""
    shown: list[tuple[Any, ...]] = []
    for _, group in groupby(rows, key=lambda row: row["modality"]):
        own = [tuple(float(row[name]) if name == "farthest" else row[name] for name in VALUE_COLUMNS) for row in group]
        short = own if len(own) <= MOST_CHANNELS else own[:FEW_CHANNELS]
        shown += short
        if len(short) < len(own):
            shown.append((own[0][0], f"... {len(own) - len(short)} more", *[None] * (len(VALUE_COLUMNS) - 2)))
    return shown
