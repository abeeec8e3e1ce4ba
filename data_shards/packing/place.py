"""The folder of a data set in the making: what may be written there, what is committed, what nobody names any more."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from data_shards.lease.lease import Lease
from data_shards.shards.manifest import FILE
from data_shards.shards.storage import Storage

# What is written beside a manifest, `done` while it is not there yet
_OWN = re.compile(
    r"shard-\d+-[0-9a-f]{12}\.(tar|index)|(shards|chunks|sketches|vocabulary)-[0-9a-f]{12}\.parquet"
    r"|manifest-\d+-[0-9a-f]{12}\.json|done-\d+-[0-9a-f]{12}\.(json|shards|totals)"
)


def is_own(name: str) -> bool:
    """Whether a pack writes files of this name."""
    return bool(_OWN.fullmatch(name))


def writable(out_url: str, options: dict[str, Any] | None) -> Storage:
    """The folder of a new data set; ValueError if nothing can be written there."""
    storage = Storage(out_url, options)
    if storage.scheme in ("http", "https"):
        raise ValueError(f"{storage.url} can only be read; what is written goes into a folder or an object store")
    return storage


def refuse_packed(storage: Storage, overwrite: bool) -> None:
    """Raise ValueError if a data set is there that is not to be replaced."""
    if not overwrite and storage.exists(FILE):
        raise ValueError(
            f"{storage.url} already holds a packed data set; choose another folder, or overwrite it (--overwrite)"
        )


def commit(storage: Storage, head: bytes, lease: Lease, overwrite: bool) -> None:
    """Write the manifest: from now on there is a data set."""
    lease.confirm()
    if overwrite:
        storage.write(FILE, head)
    else:
        storage.create(FILE, head)


def remove_replaced(storage: Storage, old: set[str], written: Collection[str]) -> None:
    """Remove files of the data set that this one replaced; only names that a pack writes."""
    for name in sorted(old - set(written)):
        if is_own(name):
            storage.delete(name)
    storage.delete_unfinished(is_own)
