"""Opens a packed data set of any version."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from data_shards.errors import ManifestError
from data_shards.shards.head import VERSION, read_version_two
from data_shards.shards.manifest import FILE, FORMAT, Manifest
from data_shards.shards.storage import Storage
from data_shards.shards.version_one import read_version_one

MAX_BYTES = 1 << 28
_HEAD = re.compile(r"(?P<folder>.+)/(?P<name>manifest(-\d{5,}-(?P<digest>[0-9a-f]{12}))?\.json)", re.DOTALL)
_READ = {1: read_version_one, VERSION: read_version_two}


def open_manifest(
    url: str, storage_options: dict[str, Any] | None = None, retries: int = 4, retry_delay_s: float = 0.2
) -> Manifest:
    """Read and check the manifest of a packed data set.

    Args:
        url: the data set's folder (or its ``manifest.json``); or the file of an earlier version's head in it.
        storage_options: options of the fsspec file system.

    Raises:
        ValueError: an illegal URL.
        ManifestError: no manifest, a damaged one, or one of another version; a table that is damaged.
    """
    named = _HEAD.fullmatch(url)
    folder, name = (named["folder"], named["name"]) if named else (url, FILE)
    storage = Storage(folder, storage_options, retries, retry_delay_s)
    try:
        size = storage.size(name)
        if size is not None and size > MAX_BYTES:
            raise ManifestError(f"{storage.url}: {name} has {size} bytes, the limit is {MAX_BYTES}")
        text = storage.read(name, 0, size or MAX_BYTES, exact=False)
    except (OSError, EOFError) as error:
        raise ManifestError(_missing(storage, name, error)) from error
    if named and named["digest"] and hashlib.sha256(text).hexdigest()[:12] != named["digest"]:
        raise ManifestError(f"{storage.url}: {name} has another SHA-256 than its name says")
    return parse_manifest(text, storage)


def _missing(storage: Storage, name: str, error: Exception) -> str:
    hint = " (memory:// lives in one process only)" if storage.scheme == "memory" else ""
    return f"{storage.url} is not a packed data set: {name} cannot be read: {error}{hint}"


def parse_manifest(text: bytes, storage: Storage) -> Manifest:
    """Manifest from the bytes of its file; ManifestError if it is not one."""
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{storage.url}: {FILE} is not JSON: {error}") from error
    # The version first: a newer format must not be reported as a damaged one.
    found = (table.get("format"), table.get("version")) if isinstance(table, dict) else type(table).__name__
    if not isinstance(table, dict) or found[0] != FORMAT or type(found[1]) is not int or found[1] not in _READ:
        raise ManifestError(
            f"{storage.url}: {FILE} is {found}; this program reads {FORMAT!r} of the versions 1 to {VERSION}. "
            "Use the version of the program that packed it, or pack the data set again"
        )
    return _READ[found[1]](text, storage)
