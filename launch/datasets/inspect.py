"""The verb `inspect`: what is in a packed data set, for people and for scripts."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape

from data_shards import open_manifest, summary
from data_shards.inspection.summary import MOST_INDEXED
from data_shards.paths import absolute_path, absolute_url
from data_shards.shards.versions import versions_of
from launch.datasets.tables import (
    CODE_COLUMNS,
    LABEL_COLUMNS,
    MODALITY_COLUMNS,
    OBJECT_COLUMNS,
    SAMPLING_COLUMNS,
    VALUE_COLUMNS,
    code_table,
    code_words,
    label_table,
    modality_table,
    moment_columns,
    moment_table,
    moment_words,
    object_table,
    object_words,
    sampling_table,
    value_table,
)
from launch.output.tables import print_json_line, print_table

logger = logging.getLogger(__name__)


def list_versions(url: str, as_json: bool) -> None:
    """The versions of a data set, the oldest first."""
    found = versions_of(absolute_url(url))
    if as_json:
        print_json_line({"versions": [asdict(version) for version in found]})
        return
    rows = [(own.number, own.records, own.digest, own.url) for own in found]
    print_table("versions", ("number", "records", "digest", "opened by"), rows, Console())


def inspect_data(url: str, as_json: bool, html: str | None, records: int = MOST_INDEXED) -> None:
    """Tables of a packed data set on stdout, and the same with pictures as a page; `records` as `summary`'s indexed."""
    page = None if html is None else absolute_path(html)
    facts = summary(open_manifest(absolute_url(url)), indexed=records)
    if page is not None:
        from launch.datasets.page import data_page
        from launch.output.html import write_page

        write_page(data_page(facts), page)
        logger.info("the page is %s", page)
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
    print_table("modalities", MODALITY_COLUMNS, modality_table(facts), console)
    _print_patterns(facts, console)
    if sampled := sampling_table(facts):
        title = f"how series are sampled (from {facts['sampling']['records']:,} records)"
        print_table(title, SAMPLING_COLUMNS, sampled, console)
    if facts["objects"]:
        title = f"objects and codes of a record ({object_words(facts)})"
        print_table(title, OBJECT_COLUMNS, object_table(facts), console)
    if facts["codes"]:
        print_table("the most frequent codes", CODE_COLUMNS, code_table(facts), console)
        for sentence in code_words(facts):
            console.print(escape(sentence), highlight=False)
    if facts["moments"] is not None:
        print_table(moment_words(facts), moment_columns(facts), moment_table(facts), console)
    for split, parts in facts["splits"].items():
        print_table(f"split {split}", LABEL_COLUMNS, label_table(parts), console)
    for split, rows in list(facts["values"].items())[:1]:  # further splits are much the same; the page has them
        title = f"values in the train part of split {split} (farthest: from the mean, in standard deviations)"
        print_table(title, VALUE_COLUMNS, value_table(rows), console)
    for warning in facts["warnings"]:
        console.print(f"[bold red]look at this:[/] {escape(warning)}", highlight=False)
    if not facts["groups_known"]:
        console.print("no record names a group (e.g. its patient), so whether one is in two parts was not looked at")
    console.print(f"what simple models reach on it: python -m launch baseline {facts['url']}", highlight=False)


def _print_patterns(facts: dict[str, Any], console: Console) -> None:
    patterns = facts["patterns"]
    rows = [(row["records"], ", ".join(row["absent"]) or "nothing") for row in patterns["most_frequent"]]
    title = f"what is absent together ({patterns['count']} patterns, {patterns['complete']:,} records have everything)"
    print_table(title, ("records", "absent"), rows, console)
