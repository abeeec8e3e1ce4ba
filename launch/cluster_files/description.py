"""A cluster file in the words of the rules, whatever tool it is written for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one kind: at most `most` of them with `gpus` each (None: the file does not say)."""

    name: str
    most: int
    gpus: int | None


@dataclass(frozen=True)
class ClusterFile:
    """A cluster file in the words of the lints.

    `head_work`: why training would land on the head; None if it cannot. `versions`: (where, version of Ray).
    """

    kind: str
    tree: Mapping[str, Any]
    text: str
    head_starts: Sequence[str] = ()
    worker_starts: Sequence[str] = ()
    groups: Sequence[NodeGroup] = ()
    head_work: str | None = None
    versions: Sequence[tuple[str, str]] = field(default=())


def starts(commands: Sequence[Any]) -> list[str]:
    """Of these commands, those that start Ray."""
    return [str(command) for command in commands if "ray start" in str(command) and not str(command).startswith("#")]


def ray_versions(text: str) -> list[tuple[str, str]]:
    """Versions of Ray that a file names: pinned packages, and tags of Ray's own images."""
    pinned = [(match[0], match[1]) for match in re.finditer(r"ray(?:\[[\w,]+\])?==([\w.]+)", text)]
    return pinned + [(match[0], match[1]) for match in re.finditer(r"rayproject/ray[\w-]*:(\d[\d.]*\d)", text)]


def flag_value(text: str, name: str) -> str | None:
    match = re.search(rf"--{name}[= ](\d+)", text)
    return match[1] if match else None
