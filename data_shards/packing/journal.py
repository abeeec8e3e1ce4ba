"""Which shards of a data set in the making are complete: one small file each, so that whoever comes next goes on.

The files lie beside the shards and are named after the job: what is made, of which data. Nothing reads them once there
is a manifest, and then they are removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from data_shards.errors import JobError
from data_shards.packing.sealed import Sealed
from data_shards.shards.contents.shards import IndexFile
from data_shards.shards.storage import NAME, Storage

_FILE = re.compile(r"done-(\d{5,})-([0-9a-f]{12})\.(json|shards|totals)")


@dataclass(frozen=True)
class Entry:
    """Names, lengths and digests of a shard and its index, and what was counted while it was made."""

    name: str
    bytes: int
    sha256: str
    index: IndexFile
    notes: dict[str, int]


class Journal:
    """Of one job in one folder.

    Args:
        job: SHA-256 of what decides every byte of the result.
    """

    def __init__(self, storage: Storage, job: str) -> None:
        self.storage, self.job = storage, job[:12]

    def _name(self, number: int) -> str:
        return f"done-{number:05d}-{self.job}.json"

    def add(self, number: int, sealed: Sealed, notes: dict[str, int]) -> None:
        """A shard is complete: both of its files are stored."""
        entry = Entry(sealed.name, sealed.bytes, sealed.sha256, sealed.index, notes)
        self.storage.write(self._name(number), json.dumps(asdict(entry), sort_keys=True).encode())

    def entries(self, shards: int) -> dict[int, Entry]:
        """Number -> complete shard. An entry that says nothing legal counts as none: its shard is made again."""
        found = {}
        there = set(self.storage.names())
        for number in range(shards):
            if self._name(number) in there:
                entry = _parsed(self.storage.read(self._name(number)))
                if entry is not None:
                    found[number] = entry
        return found


def refuse_others(storage: Storage, job: str, what: str) -> None:
    """Raise JobError if another job has begun to write here; of ``job`` the first digits count."""
    others = {name[2] for name in map(_FILE.fullmatch, storage.names()) if name and name[2] != job[:12]}
    if others:
        raise JobError(
            f"{storage.url} holds the beginning of another {what}, of other data or with other settings "
            f"({', '.join(sorted(others))}, this one is {job[:12]}): end that one with its own command, choose "
            "another place, or start anew (--overwrite)"
        )


def _parsed(text: bytes) -> Entry | None:
    try:
        table: Mapping[str, Any] = json.loads(text)
        entry = Entry(**{**table, "index": IndexFile(**table["index"])})
        sizes = (entry.bytes, entry.index.bytes, *entry.notes.values())
        names = (entry.name, entry.index.name)
        legal = all(type(size) is int and size >= 0 for size in sizes) and all(NAME.fullmatch(name) for name in names)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return entry if legal else None
