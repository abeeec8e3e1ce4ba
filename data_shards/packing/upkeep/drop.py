"""An earlier version of a data set that grows, forgotten: its head, and what no other version names."""

from __future__ import annotations

from typing import Any

from data_shards.lease.lease import LEASE_S, take
from data_shards.packing.place import writable
from data_shards.shards.manifest import FILE
from data_shards.shards.opening import open_manifest
from data_shards.shards.versions import files_of, files_of_all, versions_of


def drop_version(
    url: str, version: str, *, storage_options: dict[str, Any] | None = None, lease_s: float = LEASE_S
) -> list[str]:
    """Names of the files that were removed, the head first.

    Args:
        version: its number, or the first digits (four or more) of its digest.

    Raises:
        ValueError: there is no such version, several, or it is the newest one. LeaseHeldError: another one is at work.
    """
    storage = writable(url, storage_options)
    with take(storage.url, "dropping of a version", "wait", lease_s=lease_s, options=storage_options) as lease:
        known = versions_of(storage.url, storage_options)
        found = [
            own for own in known if str(own.number) == version or (len(version) > 3 and own.digest.startswith(version))
        ]
        if len(found) != 1:
            said = ", ".join(f"{own.number} ({own.digest[:12]})" for own in known)
            raise ValueError(f"{storage.url} has no version {version!r}, or several: its versions are {said}")
        if found[0].name == FILE:
            raise ValueError(f"version {version} of {storage.url} is the newest one, which stays")
        unused = files_of(open_manifest(found[0].url, storage_options)) - files_of_all(
            storage.url, storage_options, without=found[0].digest
        )
        lease.confirm()
        # The head first: a version whose files are gone is never seen.
        names = [found[0].name, *sorted(unused)]
        for name in names:
            storage.delete(name)
        return names
