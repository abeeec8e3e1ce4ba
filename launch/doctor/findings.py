"""What the doctor says: one finding a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.table import Table

from launch.output.tables import people

State = Literal["ok", "warn", "fail"]
ORDER: tuple[State, ...] = ("ok", "warn", "fail")
COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Finding:
    """`check` is the subject, `node` where it was looked at ("" = the cluster as a whole), `todo` what to do if it is
    not ok."""

    check: str
    state: State
    text: str
    todo: str = ""
    node: str = ""


def worst(findings: Sequence[Finding]) -> State:
    """The gravest state among them."""
    return max((finding.state for finding in findings), key=ORDER.index, default="ok")


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """For scripts."""
    return {"state": worst(findings), "findings": [asdict(finding) for finding in findings]}


def show(findings: Sequence[Finding]) -> None:
    """For people: a table, with what to do below what is wrong."""
    table = Table(title="doctor", title_justify="left", show_header=False, pad_edge=False, box=None)
    for style in ("", "", "", ""):
        table.add_column(style=style, overflow="fold")
    for finding in findings:
        colour = COLOURS[finding.state]
        text = finding.text + (f"\n-> {finding.todo}" if finding.todo else "")
        table.add_row(f"[{colour}]{finding.state}[/]", finding.check, finding.node, text.replace("[", r"\["))
    people.print(table)
