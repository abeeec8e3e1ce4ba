"""How far a pack is, beside its shards: whoever runs the same command next goes on behind the last entry.

An entry says which shards are complete, behind which record of which unit the next one begins, and what all units
before were counted to. It is two files, written one after the other: the shards since the entry before, and the rest,
which names all files of shards with their digests. Nothing reads them once there is a manifest, and then they are gone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from data_shards.packing.journal import refuse_others
from data_shards.packing.sealed import Sealed
from data_shards.packing.units.encoded import ANY_SIZE
from data_shards.packing.units.totals import Totals
from data_shards.records.arrays import dump_tensors, load_tensors
from data_shards.records.schema import DatasetSchema
from data_shards.shards.contents.shards import IndexFile
from data_shards.shards.storage import Storage

logger = logging.getLogger(__name__)

EVERY_S = 10.0
_DIGEST = 32  # bytes in front of the rest


@dataclass
class Entry:
    """Where to go on.

    Attributes:
        shards: that are complete, in order.
        unit, row: of the first record that is in none of them; ``row`` may be the unit's end.
        totals: of all units before ``unit``.
    """

    shards: list[Sealed]
    unit: int
    row: int
    totals: Totals


class Log:
    """Of one job in one folder.

    Attributes:
        kept: shards that stay if the pack ends now.

    Args:
        job: gives the SHA-256 of what decides every byte of the result; None: nobody could tell, so nothing is kept.
        every_s: seconds between entries, and before the first one.
    """

    def __init__(
        self, storage: Storage, schema: DatasetSchema, job: Callable[[], str | None], every_s: float = EVERY_S
    ) -> None:
        self.storage, self.schema, self.every_s = storage, schema, every_s
        self._job = job
        self._files: list[tuple[str, str]] = []
        self._shards: set[str] = set()
        self.kept = 0
        self._before: str | None = None
        self._last = time.monotonic()

    @cached_property
    def job(self) -> str | None:
        """First digits of the job's digest."""
        found = self._job()
        return None if found is None else found[:12]

    @property
    def due(self) -> bool:
        """Whether it is time for an entry."""
        return time.monotonic() - self._last >= self.every_s and self.job is not None

    def files(self) -> set[str]:
        """Names of all files that the last entry needs, those of shards with them; empty without one."""
        return self._noted() | self._shards

    def _noted(self) -> set[str]:
        return {name for name, _ in self._files} | ({self._before} if self._before else set())

    def add(self, shards: Sequence[Sealed], unit: int, row: int, totals: bytes) -> None:
        """All these shards are complete; the arguments as in `Entry`."""
        number = f"{len(shards):05d}-{self.job}"
        data = _dump(shards[self.kept :])
        self.storage.write(f"done-{number}.shards", data)
        self._files.append((f"done-{number}.shards", hashlib.sha256(data).hexdigest()))
        about = json.dumps({"files": self._files, "unit": unit, "row": row})
        rest = dump_tensors({"totals": np.frombuffer(totals, np.uint8)}, {"entry": about})
        name, before = f"done-{number}.totals", self._before
        self.storage.write(name, hashlib.sha256(rest).digest() + rest)
        self._keep(name, shards)
        if before and before != name:
            self.storage.delete(before)
        self._last = time.monotonic()

    def _keep(self, name: str, shards: Sequence[Sealed]) -> None:
        self._shards |= {file for own in shards[self.kept :] for file in (own.name, own.index.name)}
        self._before, self.kept = name, len(shards)

    def last(self) -> Entry | None:
        """What an earlier pack has left, if anything. Raises JobError: another job has begun to write here."""
        names = self.storage.names()
        if not any(name.startswith("done-") for name in names):
            return None
        job = self.job or "-"
        refuse_others(self.storage, job, "pack")
        own = re.compile(rf"done-(\d{{5,}})-{job}\.totals")
        found = sorted((int(match[1]), match[0]) for match in map(own.fullmatch, names) if match)
        for _, name in reversed(found):
            try:
                return self._read(name)
            except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
                logger.warning("%s: entry %s is damaged (%s)", self.storage.url, name, error)
        return None

    def _read(self, name: str) -> Entry:
        rest, about = _checked(self.storage.read(name))
        entry = json.loads(about["entry"])
        shards, files = list[Sealed](), [(str(file), str(digest)) for file, digest in entry["files"]]
        for file, digest in files:
            data = self.storage.read(file)
            if hashlib.sha256(data).hexdigest() != digest:
                raise ValueError(f"{file} has another SHA-256 than was noted")
            shards += _load(data)
        totals = Totals.of_bytes(self.schema, rest["totals"].tobytes())
        self._files = files
        self._keep(name, shards)
        return Entry(shards, int(entry["unit"]), int(entry["row"]), totals)

    def forget(self) -> None:
        """Begin anew: what was noted counts no more."""
        for name in self._noted():
            self.storage.delete(name)
        self._files, self._before, self._shards, self.kept = [], None, set(), 0


def _checked(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
        raise ValueError("its SHA-256 is another one")
    return load_tensors(data[_DIGEST:], ANY_SIZE)


def _dump(shards: Sequence[Sealed]) -> bytes:
    rows = [
        {
            "name": own.name,
            "bytes": own.bytes,
            "sha256": own.sha256,
            "records": own.records,
            "index": asdict(own.index),
            "shape": own.parts_kC.shape,
        }
        for own in shards
    ]
    tensors = {
        "chunks": np.concatenate([own.chunks_k5 for own in shards]),
        "parts": np.concatenate([own.parts_kC.ravel() for own in shards]).astype(np.int32),
        "samples": np.concatenate([own.samples_kC.ravel() for own in shards]).astype(np.int32),
    }
    return dump_tensors(tensors, {"shards": json.dumps(rows)})


def _load(data: bytes) -> list[Sealed]:
    tensors, metadata = load_tensors(data, ANY_SIZE)
    found, chunk, cell = list[Sealed](), 0, 0
    for row in json.loads(metadata["shards"]):
        chunks, columns = row["shape"]
        cells = slice(cell, cell + chunks * columns)
        found.append(
            Sealed(
                row["name"],
                row["bytes"],
                row["sha256"],
                row["records"],
                IndexFile(**row["index"]),
                tensors["chunks"][chunk : chunk + chunks],
                tensors["parts"][cells].reshape(chunks, columns),
                tensors["samples"][cells].reshape(chunks, columns),
            )
        )
        chunk, cell = chunk + chunks, cells.stop
    return found
