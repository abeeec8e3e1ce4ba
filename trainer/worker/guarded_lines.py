"""Lines at the end of a local file, as long as the name that the file lies under is this process's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TextIO

from data_shards.errors import LeaseDoubtError
from data_shards.lease.lease import Guard


class GuardedLines:
    """Appends lines at once, so that `tail -F` follows them; holds them back while the name is in doubt.

    The file stays open: once another process has replaced it, what a late writer adds is in no folder any more.
    """

    def __init__(self, path: Path, guard: Guard) -> None:
        self._path, self._guard = path, guard
        self._file: TextIO | None = None
        self._held = ""

    def write(self, text: str) -> None:
        """Whole lines. Raises LeaseLostError."""
        self._held += text
        try:
            self._guard.check()
        except LeaseDoubtError:
            return
        self._put()

    def replace(self, text: str) -> None:
        """Let the file hold this text, under a new identity. Raises LeaseLostError, LeaseDoubtError."""
        self._guard.confirm()
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self._path)
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Write what was held back. Raises LeaseLostError, LeaseDoubtError."""
        if self._held:
            self._guard.confirm()
            self._put()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _cut_half_a_line(self) -> None:
        """What a process was killed in; the next line would become a part of it."""
        data = self._path.read_bytes() if self._path.exists() else b""
        if not data.endswith(b"\n") and data:
            os.truncate(self._path, data.rfind(b"\n") + 1)

    def _put(self) -> None:
        if self._file is None:
            self._cut_half_a_line()
            self._file = self._path.open("a", encoding="utf-8")
        self._file.write(self._held)
        self._file.flush()
        self._held = ""
