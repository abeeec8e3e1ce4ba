"""A sink of files on this machine, that writes only while the run's name is this process's own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from data_shards.errors import LeaseDoubtError
from data_shards.lease.lease import Guard
from data_shards.paths import is_local
from trainer.tracking.operations import File, Operation


class GuardedSink:
    """What takes operations in order; while the name is in doubt they wait, but files, which would be gone."""

    run_id: str | None = None
    delivery: str | None = None

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._held: list[Operation] = []

    def take(self, operation: Operation) -> None:
        """Raises LeaseLostError."""
        if operation["op"] == "file":
            self._guard.confirm()
            self._write_held()
            self._write_file(operation)
            return
        self._held.append(operation)
        try:
            self._guard.check()
        except LeaseDoubtError:
            return
        self._write_held()

    def finish(self, timeout_s: float) -> None:
        """Raises LeaseLostError, LeaseDoubtError."""
        if self._held:
            self._guard.confirm()
            self._write_held()
        self._close()

    def _write_held(self) -> None:
        held, self._held = self._held, []
        for operation in held:
            self._write(operation)

    def _write(self, operation: Operation) -> None:
        raise NotImplementedError

    def _write_file(self, file: File) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError


def name_of(file: File) -> str:
    """Of a file within its run: `figures/roc_died.png`."""
    name = Path(file["path"]).name
    return f"{file['folder']}/{name}" if file["folder"] else name


def folder_for(run_dir: str, library: str, key: str, extra: str) -> Path:
    """Where a library writes of a run. Raises ValueError: it is not installed, or the run lies in another store."""
    if importlib.util.find_spec(library) is None:
        raise ValueError(f"{key} needs the package {library}: pip install 'fleximoe[{extra}]', or leave it out")
    if not is_local(run_dir):
        raise ValueError(
            f"{key} writes files on this machine, and the run is kept at {run_dir}: leave it out, or give a local "
            "training.storage"
        )
    return Path(run_dir) / extra
