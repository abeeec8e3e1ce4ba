"""Predictions as a folder of Parquet files, for data whose predictions no single process should hold or write.

Whoever predicts writes: each worker a whole file of `PART_SAMPLES` samples, named by its place, straight to the target;
the driver sees counts only. Files in the order of their names hold the rows in the order of the data set, whoever wrote
them. Each file appears whole or not at all, and `_predictions.json`, the last to be written, says that all are there;
before it there is `_asked.json`: what was asked, so that the same command goes on behind the files that are complete.
Readers of Parquet folders (pyarrow, pandas, Spark, DuckDB) pass over names that begin with an underscore.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

from data_shards import open_manifest
from data_shards.errors import skipped_words
from data_shards.paths import is_local
from launch.errors import RunFailedError, UsageError
from trainer.config.run_config import RunConfig

if TYPE_CHECKING:
    from trainer.ensemble.answers import Answers, AnyRequest
    from trainer.inference.predictor import Stretch

PART_SAMPLES = 1 << 16
ASKED, DONE = "_asked.json", "_predictions.json"
_COUNTS = b"fleximoe.counts"  # in a file's metadata, so that it need not be made again to be counted


@dataclass(frozen=True)
class Part:
    """A file to come."""

    number: int
    stretches: tuple[Stretch, ...]

    @property
    def name(self) -> str:
        return f"part-{self.number:08d}.parquet"


def is_folder(out: str) -> bool:
    """Whether an output is to be a folder: it ends with a slash."""
    return out.endswith("/")


def parts_of(stretches: Sequence[Stretch], samples: int = PART_SAMPLES) -> list[Part]:
    """Neighbouring stretches together, until there are so many samples."""
    parts: list[Part] = []
    held: list[Stretch] = []
    for stretch in stretches:
        held.append(stretch)
        if sum(one.stop - one.start for one in held) >= samples:
            parts.append(Part(len(parts), tuple(held)))
            held = []
    return [*parts, Part(len(parts), tuple(held))] if held else parts


def asked_of(request: AnyRequest, config: RunConfig, samples: int) -> str:
    """What is asked, as a digest: of the request, of the checkpoints it names, and of the data."""
    data = open_manifest(config.data.url, config.data.storage_options).digest
    members = getattr(request, "members", (request,))
    commits = [_commit(str(getattr(member, "checkpoint", ""))) for member in members]
    return hashlib.sha256(repr((request, commits, data, samples)).encode()).hexdigest()


def _commit(checkpoint: str) -> str:
    fs, path = fsspec.url_to_fs(checkpoint)
    return fs.cat_file(f"{path}/COMMIT").decode() if checkpoint and fs.exists(f"{path}/COMMIT") else ""


class Folder:
    """The target.

    Raises:
        UsageError: something else is there, or all of it is.
    """

    def __init__(self, url: str, asked: str, overwrite: bool) -> None:
        self.url = url.rstrip("/")
        self._fs, self._root = fsspec.url_to_fs(self.url)
        self._fs.invalidate_cache()
        if overwrite and self._fs.exists(self._root):
            self._fs.rm(self._root, recursive=True)
        there = self._fs.exists(self._root) and bool(self._fs.ls(self._root, detail=False))
        if there and self._fs.exists(f"{self._root}/{DONE}"):
            raise UsageError(f"{self.url}/ exists: give another name, or --overwrite")
        if there and self._stored() != asked:
            raise UsageError(
                f"{self.url}/ holds something else, or part of other predictions: give another name, or --overwrite"
            )
        if not there:
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(f"{self._root}/{ASKED}", json.dumps({"asked": asked}).encode())

    def _stored(self) -> str | None:
        path = f"{self._root}/{ASKED}"
        return json.loads(self._fs.cat_file(path))["asked"] if self._fs.exists(path) else None

    def missing(self, parts: Iterable[Part]) -> list[Part]:
        """Those that are not there yet."""
        there = {path.rsplit("/", 1)[1] for path in self._fs.ls(self._root, detail=False)}
        return [part for part in parts if part.name not in there]

    def finish(self, parts: Sequence[Part], said: dict[str, Any]) -> dict[str, Any]:
        """Count what all files hold, and say that they are there.

        Raises:
            RunFailedError: no record could be read.
        """
        import pyarrow.parquet

        total: Counter[str] = Counter()
        skipped: Counter[str] = Counter()
        for part in parts:
            with self._fs.open(f"{self._root}/{part.name}", "rb") as file:
                found = json.loads(pyarrow.parquet.read_schema(file).metadata[_COUNTS])
            total.update(found["counts"])
            skipped.update(found["skipped"])
        if not total["records"]:
            raise RunFailedError(f"no record could be read, so nothing is predicted: {skipped_words(dict(skipped))}")
        for path in self._fs.ls(self._root, detail=False):
            if path.endswith(".tmp"):  # of a process that was killed
                self._fs.rm(path)
        whole = {**total, "skipped": dict(skipped), "files": len(parts), **said}
        self._fs.pipe_file(f"{self._root}/{DONE}", json.dumps(whole, indent=1).encode())
        return whole


def write_part(answers: Answers, part: Part, url: str) -> int:
    """Predict the samples of a part and write its file, which appears whole or not at all; rows in it."""
    import pyarrow as pa
    import pyarrow.parquet

    fs, path = fsspec.url_to_fs(f"{url}/{part.name}")
    local = is_local(url)
    folder = Path(path).parent if local else Path(tempfile.gettempdir())
    temporary = folder / f".{part.name}.{os.getpid()}.tmp"
    counts: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    tables: list[pa.Table] = []
    for stretch in part.stretches:
        table, lost = answers(stretch)
        # All samples of a record are in one stretch.
        counts["records"] += len(table["record"].unique())
        if "moment" in table.column_names:
            counts["moments"] += len(table)
        skipped.update(lost)
        tables.append(table)
    whole = pa.concat_tables(tables)
    about = {_COUNTS: json.dumps({"counts": counts, "skipped": skipped}).encode()}
    whole = whole.replace_schema_metadata({**(whole.schema.metadata or {}), **about})
    try:
        pyarrow.parquet.write_table(whole, temporary)
        if local:
            temporary.replace(path)
        else:
            fs.put_file(str(temporary), path)
    finally:
        temporary.unlink(missing_ok=True)
    return len(whole)


def write_here(answers: Answers, parts: Iterable[Part], url: str) -> Iterator[int]:
    """In this process; rows of each file when it is there."""
    for part in parts:
        yield write_part(answers, part, url)
