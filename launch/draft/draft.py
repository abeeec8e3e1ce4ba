"""A mapping as it is drafted: its entries, what is not sure of them, and what was left out."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from data_shards.records.schema import NAME


@dataclass
class Draft:
    """A mapping in the making.

    Attributes:
        tree: the mapping, as its file has it. doubts: place in the tree ("records", "modalities.vitals", ...) -> what
            is to be looked at there. left_out: what no entry uses, and why.
    """

    tree: dict[str, Any]
    doubts: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def doubt(self, place: str, what: str) -> None:
        """Somebody should look at this entry."""
        self.doubts.setdefault(place, []).append(what)

    def add(self, name: str, section: dict[str, Any]) -> str:
        """A modality under this name, or one like it; returns its name."""
        own = legal_name(name, self.tree["modalities"])
        self.tree["modalities"][own] = section
        return own

    def said(self) -> list[str]:
        """All of it, in sentences."""
        return [f"{place}: {what}" for place, own in self.doubts.items() for what in own] + [
            f"left out: {what}" for what in self.left_out
        ]


def legal_name(text: str, taken: Any = ()) -> str:
    """A name for a modality or task that nobody else has."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_")[:56] or "column"
    assert NAME.fullmatch(plain)
    own, number = plain, 2
    while own in taken:
        own, number = f"{plain}_{number}", number + 1
    return own
