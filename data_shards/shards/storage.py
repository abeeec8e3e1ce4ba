"""Bytes by URL: an allow-list of schemes, ranged reads with retry, and writes that appear whole or not at all.

File systems are opened on first use and never travel between processes: the asynchronous ones do not survive a fork.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import random
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from data_shards.errors import PathError
from data_shards.paths import absolute_url, split_scheme

SCHEMES = ("file", "memory", "s3", "gs", "http", "https")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+-[0-9a-f]+\.tmp")
_PIECE = 32 << 20
_COUNTING = threading.Lock()
T = TypeVar("T")


class _WholeFileError(OSError):
    """A server gives files as a whole only; asking again changes nothing."""


def check_url(url: str) -> tuple[str, str]:
    """(scheme, absolute path or normalised URL, without a slash at the end).

    Raises:
        PathError: no place at all (`data_shards.paths`), a scheme that is not allowed, credentials in the URL, a
            fragment that no server would be sent, a link-local address.
    """
    scheme, place = split_scheme(url)
    if scheme == "file":
        return "file", absolute_url(url)
    if scheme not in SCHEMES:
        raise PathError(f"{url!r}: scheme {scheme!r} is none of {', '.join(SCHEMES)}")
    parts = urlsplit(place)
    if "@" in parts.netloc:
        raise PathError("the URL holds credentials; give them through the environment or the provider's own files")
    if scheme in ("http", "https") and _link_local(parts.hostname or ""):
        raise PathError(f"{url!r}: link-local addresses serve machine metadata, not data")
    if scheme in ("http", "https") and "#" in place:
        raise PathError(f"{url!r}: a server is never sent what follows #; write %23 if it belongs to a name")
    return scheme, place.rstrip("/")


def _link_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_link_local
    except ValueError:
        return False


class Storage:
    """One folder of a file system.

    Args:
        url: the folder.
        options: passed to the fsspec file system; HTTP redirects are followed only with ``allow_redirects`` here.
        retries: further attempts after a failed read. delay_s: mean wait before the first one, doubled each time.

    Attributes:
        counts: reads, bytes and retries so far.
    """

    def __init__(self, url: str, options: dict[str, Any] | None = None, retries: int = 4, delay_s: float = 0.2) -> None:
        self.scheme, self.url = check_url(url)
        self.retries, self.delay_s = retries, delay_s
        self.options = dict(options or {})
        if self.scheme in ("http", "https"):
            self.options.setdefault("allow_redirects", False)
        self.counts: Counter[str] = Counter()
        self._fs: Any = None
        self._path = ""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fs": None}

    def with_retries(self, retries: int, delay_s: float) -> Storage:
        """The same folder with another retry policy."""
        return Storage(self.url, self.options, retries, delay_s)

    def path(self, name: str) -> str:
        """Path of a file of this folder; ValueError if the name would leave the folder."""
        if not NAME.fullmatch(name):
            raise ValueError(f"file name {name!r} leaves the folder or holds illegal characters")
        return f"{self._open()[1]}/{name}"

    def read(self, name: str, start: int = 0, end: int | None = None, exact: bool = True) -> bytes:
        """Bytes [start, end) of a file; retries transient failures and short answers.

        Args:
            exact: whether fewer bytes than asked for are an error.

        Raises:
            EOFError: the file is shorter. OSError: any other last failure, after all attempts.
        """

        def once() -> bytes:
            self._count(reads=1)
            data: bytes = self._open()[0].cat_file(self.path(name), start=start, end=end)
            if end is not None and len(data) > end - start:
                raise _WholeFileError(
                    f"the server gave {len(data)} bytes where {end - start} were asked for: it knows no ranges; "
                    "copy the data from it (`copy`), and use the copy"
                )
            if exact and end is not None and len(data) < end - start:
                raise EOFError(f"got {len(data)} bytes of the {end - start} asked for")
            self._count(bytes=len(data))
            return data

        return self._retry(name, once)

    def _count(self, **more: int) -> None:
        with _COUNTING:  # a reader asks for several chunks at the same time
            self.counts.update(more)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if the server does not say. Raises OSError if it is not there."""
        self._forget_listings()
        size = self._retry(name, lambda: self._open()[0].size(self.path(name)))
        return None if size is None else int(size)

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        self._forget_listings()
        return bool(self._retry(name, lambda: self._open()[0].exists(self.path(name))))

    def _forget_listings(self) -> None:
        """Let fsspec look anew: another process may have written since."""
        fs, root = self._open()
        fs.invalidate_cache(root)

    def _retry(self, name: str, once: Callable[[], T]) -> T:
        for attempt in range(self.retries + 1):
            try:
                return once()
            except storage_failures() as error:
                if attempt == self.retries or self._permanent(error):
                    kind = EOFError if isinstance(error, EOFError) else OSError
                    raise kind(f"{name}: {_say(error)} (attempt {attempt + 1})") from error
                self._count(retries=1)
                time.sleep(self.delay_s * 2**attempt * random.uniform(0.5, 1.5))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _permanent(self, error: BaseException) -> bool:
        """Local failures do not heal by waiting; object stores also deny existing objects for a moment."""
        return isinstance(error, PermissionError | _WholeFileError) or self.scheme in ("file", "memory")

    def write(self, name: str, data: bytes) -> None:
        """Store a whole file; it appears complete under its name or not at all.

        Raises:
            OSError: the bytes could not be stored; nothing is left under the name.
        """
        path = self.path(name)
        if self.scheme == "file":
            _write_local(Path(path), data)
            return
        self._open()[0].pipe_file(path, data)
        self._check_size(name, data)

    def _check_size(self, name: str, data: bytes) -> None:
        if self._open()[0].size(self.path(name)) != len(data):
            raise OSError(f"{name}: the store holds another number of bytes than the {len(data)} written")

    def create(self, name: str, data: bytes) -> None:
        """The same for a file that must not be there yet: of two that create it one succeeds.

        Raises:
            FileExistsError: it is there. OSError: the bytes could not be stored.
        """
        path = self.path(name)
        if self.scheme == "file":
            _write_local(Path(path), data, replace=False)
            return
        self._open()[0].pipe_file(path, data, mode="create")
        self._check_size(name, data)

    def delete(self, name: str) -> None:
        """Remove a file if it is there."""
        try:
            self._open()[0].rm_file(self.path(name))
        except FileNotFoundError:
            return

    def delete_unfinished(self, wanted: Callable[[str], bool]) -> None:
        """Remove what killed processes have left of files that would have had certain names."""
        for path in Path(self._open()[1]).glob(".*.tmp") if self.scheme == "file" else ():
            name = _TEMPORARY.fullmatch(path.name)
            if name and wanted(name["name"]):
                path.unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Names of the files in this folder, sorted; empty if there is no folder, or a server that does not list it."""
        fs, root = self._open()
        if self.scheme in ("http", "https"):
            root += "/"  # of a folder; without it servers answer with another address
        fs.invalidate_cache()
        if not fs.exists(root):
            return []
        return sorted(str(entry).rsplit("/", 1)[-1] for entry in fs.ls(root, detail=False))

    def _open(self) -> tuple[Any, str]:
        if self._fs is None:
            import fsspec

            self._fs, path = fsspec.core.url_to_fs(self.url, **self.options)
            self._path = str(path).rstrip("/")
        return self._fs, self._path


def _write_local(path: Path, data: bytes, replace: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")  # of hosts that share it, too
    try:
        with temporary.open("wb") as stream:
            view = memoryview(data)
            for start in range(0, len(view), _PIECE):
                stream.write(view[start : start + _PIECE])
            stream.flush()
            os.fsync(stream.fileno())
        if replace:
            temporary.replace(path)
        else:
            _link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> None:
    """Give a file its name, unless another has it; a file system without hard links is looked at before."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:
        if path.exists():
            raise FileExistsError(f"{path} is there") from None
        temporary.replace(path)


def _say(error: BaseException) -> str:
    return str(error) or type(error).__name__


def storage_failures() -> tuple[type[BaseException], ...]:
    """Failures of storage, as opposed to programming errors and lack of memory, which pass through."""
    import aiohttp

    kinds: list[type[BaseException]] = [OSError, EOFError, TimeoutError, aiohttp.ClientError]
    with contextlib.suppress(ImportError):  # it comes with the extra s3
        from botocore.exceptions import BotoCoreError, ClientError

        kinds += [BotoCoreError, ClientError]
    return tuple(kinds)
