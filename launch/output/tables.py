"""What the commands print: tables for people on stderr, one JSON object for scripts as the last line of stdout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from trainer.worker.console import json_line

people = Console(stderr=True, soft_wrap=True)


def print_json_line(result: Mapping[str, Any]) -> None:
    """The machine-readable result."""
    print(json_line(result), flush=True)


def print_metrics(title: str, metrics: Mapping[str, float]) -> None:
    """A table of metrics, one a row."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in sorted(metrics.items()):
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) and not value.is_integer() else f"{value:,.0f}")
    people.print(table)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], console: Console = people) -> None:
    """A table with numbers to the right."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[number], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
