"""What an entry of a lease says, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from data_shards.lease.owner import Owner


@dataclass(frozen=True)
class Parent:
    """A lease that somebody holds, in words that can be handed to other processes that work on its behalf."""

    place: str
    token: str
    stem: str = "owner"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Parent:
        """Raises ValueError: not what `to_json` gives."""
        try:
            return Parent(**json.loads(text))
        except TypeError:
            raise ValueError(f"{text!r} names no lease") from None


@dataclass(frozen=True)
class Record:
    """One sign of life of an owner.

    Attributes:
        token: random, the same for as long as this owner holds the lease. after: the token of the owner from which it
            was taken over, None if the place was free.
        what: the thing that is owned, in words. since, beat: when it was taken, and when this was written, in seconds
            since the epoch, for people only.
        clock: the owner's `Clock` when this was written. lease_s: how long the owner may rely on it.
        under: the lease that it was taken on behalf of.
    """

    token: str
    after: str | None
    what: str
    owner: Owner
    since: float
    beat: float
    clock: float
    lease_s: float
    under: Parent | None

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    @staticmethod
    def from_json(data: bytes) -> Record | None:
        """None for bytes that are no record (yet): it is still being written, or something else lies there."""
        try:
            tree: dict[str, Any] = json.loads(data)
            under = Parent(**tree["under"]) if tree["under"] else None
            return Record(**{**tree, "owner": Owner(**tree["owner"]), "under": under})
        except (ValueError, TypeError, KeyError):
            return None

    def __str__(self) -> str:
        return f"{self.owner}, at work since {_utc(self.since)}, last heartbeat {_utc(self.beat)}"


def _utc(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
