"""The entries of a lease on a storage: small files with rising numbers, of which none is ever written twice.

All that is asked of a storage is that a file can be created if it is not there, that of several who try at once one
succeeds, and that whoever has created a file then sees in a listing what was created before:

    files    O_EXCL, which local file systems and NFS from version 3 on keep; creating a file in a folder makes an NFS
             client look at that folder anew
    S3       PUT with If-None-Match: *; listings are consistent
    gs://    the generation must be 0
    memory   within one process, as everything there

A store of another kind is asked to create and then read after a moment whether it is still the same file: two that
start within that moment of each other are told apart, unless the store shows them different contents for longer.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from data_shards.paths import absolute_path, is_local

FOLDER = "lease"
EXCLUSIVE = ("s3", "s3a", "gs", "gcs", "memory")
SETTLE_S = 2.0
TRIES = 10
_MEMORY = threading.Lock()  # fsspec's looks and then writes


class Entries(Protocol):
    """Entries by number. Every method raises OSError if the storage is away."""

    settle_s: float
    """Seconds after which what was created is seen by all; 0 where creating is exclusive."""

    def numbers(self) -> set[int]:
        """Those that are there."""

    def create(self, number: int, data: bytes) -> bool:
        """Write an entry; False if there is one of this number."""

    def read(self, number: int) -> bytes | None:
        """None if it is not there."""

    def remove(self, number: int) -> None:
        """Nothing happens if it is not there."""

    def leave(self) -> None:
        """Remove the folders that were made for the entries, as far as they are empty."""


def entries_at(place: str, stem: str, options: dict[str, Any] | None = None) -> Entries:
    """The entries called `stem` at a place, a path or a URL."""
    if is_local(place):
        return _Files(absolute_path(place), stem)
    return _Objects(place, stem, options or {})


def _name(stem: str, number: int) -> str:
    return f"{stem}-{number:015d}.json"


def _numbers(names: list[str], stem: str) -> set[int]:
    found = (name.removeprefix(f"{stem}-").removesuffix(".json") for name in names if name.startswith(f"{stem}-"))
    return {int(text) for text in found if text.isdigit()}


class _Files:
    settle_s = 0.0

    def __init__(self, place: Path, stem: str) -> None:
        self._folder, self._stem = place / FOLDER, stem
        self._made: list[Path] = []

    def _path(self, number: int) -> Path:
        return self._folder / _name(self._stem, number)

    def numbers(self) -> set[int]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return _numbers(os.listdir(self._folder), self._stem)  # noqa: PTH208  # names, not paths
        return set()

    def create(self, number: int, data: bytes) -> bool:
        for attempt in range(TRIES):
            try:
                self._make(self._folder)
                file = os.open(self._path(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                return False
            except FileNotFoundError:  # whoever had the place has just left, and taken the folder away
                if attempt + 1 == TRIES:
                    raise
                continue
            try:
                os.write(file, data)
            finally:
                os.close(file)
            return True
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _make(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            self._made.append(folder)

    def read(self, number: int) -> bytes | None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return self._path(number).read_bytes()
        return None

    def remove(self, number: int) -> None:
        self._path(number).unlink(missing_ok=True)

    def leave(self) -> None:
        for folder in [self._folder, *reversed(self._made)]:
            with contextlib.suppress(OSError):  # not empty, or another one has removed it
                folder.rmdir()


class _Objects:
    def __init__(self, place: str, stem: str, options: dict[str, Any]) -> None:
        import fsspec

        self._fs, root = fsspec.core.url_to_fs(place, **options)
        self._folder, self._stem = f"{str(root).rstrip('/')}/{FOLDER}", stem
        protocol = self._fs.protocol
        names = (protocol,) if isinstance(protocol, str) else tuple(protocol)
        self._memory = "memory" in names
        self.settle_s = 0.0 if any(name in EXCLUSIVE for name in names) else SETTLE_S

    def _path(self, number: int) -> str:
        return f"{self._folder}/{_name(self._stem, number)}"

    def numbers(self) -> set[int]:
        with contextlib.suppress(FileNotFoundError), _as_os_error():
            self._fs.invalidate_cache()
            listed = self._fs.ls(self._folder, detail=False)
            return _numbers([str(path).rstrip("/").rsplit("/", 1)[-1] for path in listed], self._stem)
        return set()

    def create(self, number: int, data: bytes) -> bool:
        try:
            with _as_os_error(), _MEMORY if self._memory else contextlib.nullcontext():
                self._fs.pipe_file(self._path(number), data, mode="create")
        except FileExistsError:
            return False
        return True

    def read(self, number: int) -> bytes | None:
        with contextlib.suppress(FileNotFoundError), _as_os_error():
            return bytes(self._fs.cat_file(self._path(number)))
        return None

    def remove(self, number: int) -> None:
        with contextlib.suppress(FileNotFoundError), _as_os_error():
            self._fs.rm_file(self._path(number))

    def leave(self) -> None:
        """Object stores have no folders."""


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Whatever a store's client raises when it cannot be reached, as OSError."""
    from data_shards.shards.storage import storage_failures

    try:
        yield
    except storage_failures() as error:
        if isinstance(error, OSError):
            raise
        raise OSError(str(error) or type(error).__name__) from error
