"""The versions of a data set that grows: the manifest is the newest one, earlier heads lie beside it under names of
their own. Shards, indices and vocabularies are shared."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from data_shards.errors import ManifestError
from data_shards.shards.manifest import FILE, Manifest
from data_shards.shards.opening import open_manifest
from data_shards.shards.storage import Storage

HEAD = re.compile(r"manifest-(\d{5,})-([0-9a-f]{12})\.json")


@dataclass(frozen=True)
class Version:
    """One of them.

    Attributes:
        name: file of its head. number: 1 for the first. parent: digest of the version that it grew from.
    """

    name: str
    number: int
    digest: str
    parent: str | None
    records: int
    url: str
    """What opens this version, now and later: the folder, or the file of an earlier head."""


def head_name(manifest: Manifest) -> str:
    """Under which name a head is kept once it is no more the newest."""
    number = 1 if manifest.lineage is None else manifest.lineage.number
    return f"manifest-{number:05d}-{manifest.digest[:12]}.json"


def versions_of(url: str, storage_options: dict[str, Any] | None = None) -> list[Version]:
    """All versions, the oldest first. Raises ManifestError: there is no data set, or a head is damaged."""
    newest = open_manifest(url, storage_options)
    storage = newest.storage
    names = storage.names()
    if FILE not in names:
        raise ManifestError(
            f"{storage.url} does not say which files it has, so its versions cannot be listed; one whose file is known "
            "is opened by that (manifest-NUMBER-DIGEST.json)"
        )
    found = [_version(storage, name) for name in names if HEAD.fullmatch(name)]
    return [*sorted(found, key=lambda version: version.number), _version(storage, FILE)]


def _version(storage: Storage, name: str) -> Version:
    text = storage.read(name)
    digest, earlier = hashlib.sha256(text).hexdigest(), HEAD.fullmatch(name)
    if earlier and digest[:12] != earlier[2]:
        raise ManifestError(f"{storage.url}: {name} has another SHA-256 than its name says")
    try:
        head = json.loads(text)
        lineage = head.get("lineage") or {"number": 1, "parent": None}
        url = f"{storage.url}/{name}" if earlier else storage.url
        return Version(name, lineage["number"], digest, lineage["parent"], head["records"], url)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"{storage.url}: {name} is damaged: {error!r}") from error


def ancestors_of(manifest: Manifest) -> dict[str, str]:
    """Digest -> URL of the versions that a data set has grown from, as far as they are kept; empty if it has not.

    Raises ManifestError: a head is damaged, or they cannot be listed.
    """
    number = 1 if manifest.lineage is None else manifest.lineage.number
    found = versions_of(manifest.url, manifest.storage.options) if number > 1 else []
    return {version.digest: version.url for version in found if version.number < number}


def files_of(manifest: Manifest) -> set[str]:
    """Names of all files that a version names, its head left out."""
    names = {file.name for file in manifest.vocabularies.values()}
    names |= {name for shard in manifest.shards for name in (shard.name, shard.index.name)}
    return names | {file.name for file in manifest.tables}


def files_of_all(url: str, storage_options: dict[str, Any] | None = None, without: str | None = None) -> set[str]:
    """Names of all files of all versions, heads among them.

    Args:
        without: digest of a version that does not count.
    """
    names = set[str]()
    for version in versions_of(url, storage_options):
        if version.digest != without:
            names |= {version.name} | files_of(open_manifest(version.url, storage_options))
    return names
