"""What a run will use, for the doctor to try."""

from __future__ import annotations

from dataclasses import dataclass

from data_shards.paths import is_local


@dataclass(frozen=True)
class Wanted:
    """Folder or URL of storage, and URI of MLflow; None: not tried."""

    storage: str | None = None
    mlflow: str | None = None

    def folders(self) -> list[str]:
        """Those of it that lie on disks."""
        return [self.storage] if self.storage and is_local(self.storage) else []

    def arguments(self) -> list[str]:
        """The same as words of the command line."""
        named = (("--storage", self.storage), ("--mlflow", self.mlflow))
        return [word for flag, value in named if value is not None for word in (flag, value)]
