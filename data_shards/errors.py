"""The errors of this room: every one says what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping

# Why a record can be skipped (`ShardError.reason`); what is skipped is counted by these.
REASONS = ("unreadable", "truncated", "checksum", "tar", "layout", "value")


def skipped_words(skipped: Mapping[str, int]) -> str:
    """How many records were skipped, and why: "5 records skipped (3 checksum, 2 truncated)"."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    return f"{sum(skipped.values())} records skipped ({reasons})"


class ManifestError(ValueError):
    """A manifest is missing, damaged, of another format version, or points outside its own folder."""


class TableError(ValueError):
    """A table of a packed data set is not what its data set says of it."""


class PathError(ValueError):
    """What was given as a path or URL names no place that may be used."""


class YamlError(ValueError):
    """A YAML file cannot be read, or says one thing twice."""


class JobError(ValueError):
    """A place holds what another job has begun, and what this one was asked for cannot go on there."""


class LeaseHeldError(ValueError):
    """Somebody else owns the name: who, since when, and what to do. Nothing has been written."""


class LeaseLostError(ValueError):
    """The name belongs to somebody else by now; whoever meets this must not write under it any more."""


class LeaseDoubtError(OSError):
    """For too long nothing was heard from the storage, so whether the name is still one's own is not known.

    It passes when the storage is back and nobody has taken over.
    """


class RecordError(ValueError):
    """One stored record does not have the layout that the schema and the limits of the codec ask for.

    Attributes:
        reason: short category for counting skipped records, e.g. ``"layout"`` or ``"value"``.
    """

    def __init__(self, message: str, reason: str = "layout") -> None:
        super().__init__(message)
        self.reason = reason


class ShardError(RuntimeError):
    """Stored bytes are damaged or cannot be read.

    Attributes:
        shard: file name of the shard; empty if several are meant.
        chunk: number of the chunk in the shard, None if the whole shard or its index is meant.
        start, end: byte range [start, end) in the shard, None if unknown.
        reason: category for counting: ``unreadable``, ``truncated``, ``checksum``, ``tar``, ``layout``, ``value``.
        cause: the sentence that says what was found.
    """

    def __init__(
        self,
        shard: str,
        cause: str,
        *,
        chunk: int | None = None,
        start: int | None = None,
        end: int | None = None,
        reason: str = "unreadable",
    ) -> None:
        where = f"shard {shard}" if shard else "data"
        if chunk is not None:
            where += f", chunk {chunk}"
        if start is not None:
            where += f", bytes {start}..{end}"
        super().__init__(f"{where}: {cause}")
        self.shard, self.chunk, self.start, self.end = shard, chunk, start, end
        self.reason, self.cause = reason, cause

    def __reduce__(self) -> tuple[object, ...]:
        # Crosses the boundary of loader workers: rebuild with keywords.
        return (_rebuild, (self.shard, self.cause, self.chunk, self.start, self.end, self.reason))


def _rebuild(shard: str, cause: str, chunk: int | None, start: int | None, end: int | None, reason: str) -> ShardError:
    return ShardError(shard, cause, chunk=chunk, start=start, end=end, reason=reason)
