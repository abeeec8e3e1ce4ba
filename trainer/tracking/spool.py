"""Operations that a tracking server could not take yet, kept in order on local disk.

One JSON object a line in `operations.jsonl`; files to upload are copied beside it, because their originals may be
gone when the server is back. A line cut short by a crash is passed over when the spool is read: its operation was
never acknowledged to anyone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from trainer.tracking.operations import Operation


class Spool:
    """A durable queue in a folder, which is made when the first operation arrives and removed when it is empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "operations.jsonl"

    def __bool__(self) -> bool:
        return self._path.exists() and self._path.stat().st_size > 0

    def append(self, operations: Iterable[Operation]) -> None:
        """Add to the end; the files that they name are copied in first."""
        operations = list(operations)
        if not operations:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(self._adopt_file(operation)) + "\n" for operation in operations]
        with self._path.open("a+b") as file:
            if file.tell():  # a crash may have left half a line, which must not take the next one with it
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    lines.insert(0, "\n")
            file.write("".join(lines).encode())

    def read(self) -> list[Operation]:
        """Everything in order."""
        if not self:
            return []
        operations = []
        for line in self._path.read_bytes().split(b"\n"):
            try:
                operations.append(json.loads(line))
            except ValueError:
                continue
        return operations

    def replace(self, operations: list[Operation]) -> None:
        """Keep exactly these (what is left after a partial replay); the files that they name are copied in first."""
        if not operations:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = self._path.with_suffix(".new")
        lines = [json.dumps(self._adopt_file(operation)) + "\n" for operation in operations]
        whole.write_text("".join(lines), encoding="utf-8")
        whole.replace(self._path)

    def _adopt_file(self, operation: Operation) -> Operation:
        if operation["op"] != "file" or Path(operation["path"]).is_relative_to(self.folder):
            return operation
        # A folder of its own for each file: the file's name becomes the artifact's name.
        home = self.folder / f"file-{os.urandom(6).hex()}"
        home.mkdir()
        return {**operation, "path": str(shutil.copy2(operation["path"], home))}
