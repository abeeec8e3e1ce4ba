"""Operations that a tracking server could not take yet, kept in order on local disk.

One JSON object a line in `operations.jsonl`; files to upload are copied beside it, because their originals may be
gone when the server is back. A line cut short by a crash is dropped when the spool is read: its operation was never
acknowledged to anyone.
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
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(lines)

    def read(self) -> list[Operation]:
        """Everything in order."""
        if not self:
            return []
        operations = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                operations.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return operations

    def replace(self, operations: list[Operation]) -> None:
        """Keep exactly these (what is left after a partial replay)."""
        if not operations:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        whole = self._path.with_suffix(".new")
        whole.write_text("".join(json.dumps(operation) + "\n" for operation in operations), encoding="utf-8")
        whole.replace(self._path)

    def _adopt_file(self, operation: Operation) -> Operation:
        if operation["op"] != "file" or Path(operation["path"]).is_relative_to(self.folder):
            return operation
        # A folder of its own for each file: the file's name becomes the artifact's name.
        home = self.folder / f"file-{os.urandom(6).hex()}"
        home.mkdir()
        return {**operation, "path": str(shutil.copy2(operation["path"], home))}
