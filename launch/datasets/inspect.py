"""The verbs `pack` and `inspect`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from data_shards import open_manifest, summary
from launch.datasets.tables import VALUE_COLUMNS, label_text, value_table
from launch.output.tables import print_json_line, print_table

logger = logging.getLogger(__name__)


def inspect_data(url: str, as_json: bool, html: str | None) -> None:
    """Tables of a packed data set on stdout, and the same with pictures as a page."""
    facts = summary(open_manifest(url))
    if html is not None:
        from launch.datasets.page import data_page
        from launch.output.html import write_page

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
