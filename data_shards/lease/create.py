"""A file that must not be there yet: what ends a piece of work, so that two can never both have ended it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_shards.lease.entries import EXCLUSIVE


def protocols(fs: Any) -> tuple[str, ...]:
    """Names of an fsspec file system."""
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def create_file(fs: Any, path: str, data: bytes) -> None:
    """Write a small file. Raises FileExistsError if it is there: of two that create it one succeeds."""
    if "file" in protocols(fs):
        with Path(path).open("xb") as file:  # fsspec's looks and then writes
            file.write(data)
    else:
        fs.pipe_file(path, data, mode="create")


def creating_mode(fs: Any) -> str:
    """The mode to open a large file with that nobody else may replace while it is written.

    On a file system the old one is removed first: a late writer then fills a file that has no name any more. Object
    stores give the name to the first who completes a file.
    """
    return "xb" if any(name in EXCLUSIVE for name in protocols(fs)) else "wb"
