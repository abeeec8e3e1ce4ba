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
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

from data_shards import open_manifest
from data_shards.errors import skipped_words
from data_shards.paths import is_local
from launch.errors import RunFailedError, UsageError
from trainer.config.run_config import RunConfig
from trainer.run_folder import BASELINE, BASELINE_ARRAYS

if TYPE_CHECKING:
    from trainer.ensemble.answers import Answers, AnyRequest, BaselineRequest
    from trainer.inference.predictor import Stretch
    from trainer.inference.request import Request

PART_SAMPLES = 1 << 16
ASKED, DONE = "_asked.json", "_predictions.json"
_OWN = re.compile(r"_asked\.json|_predictions\.json|part-\d{8,}\.parquet|\.part-\d{8,}\.parquet\.\d+\.tmp")
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
    """What is asked, as a digest: of the request, whoever works on it, of the models it names, and of the data."""
    data = open_manifest(config.data.url, config.data.storage_options).digest
    from trainer.ensemble.answers import EnsembleRequest

    asked: list[Any] = [data, samples]
    if isinstance(request, EnsembleRequest):
        asked += [*map(_model, request.members), request.weights, request.tasks]
    else:
        asked.append(_model(request))
    return hashlib.sha256(repr(asked).encode()).hexdigest()


def _model(request: Request | BaselineRequest) -> tuple[Any, str]:
    """The request without what decides how many work on it and where, and what its model is, whatever its name."""
    from trainer.ensemble.answers import BaselineRequest

    if isinstance(request, BaselineRequest):
        return request, _digest(request.url, (BASELINE, BASELINE_ARRAYS))
    alone = request.config.model_copy(update={"parallel": None, "cluster": None, "tracking": None})
    return replace(request, config=alone), _digest(request.checkpoint, ("COMMIT",))


def _digest(url: str, names: Iterable[str]) -> str:
    fs, path = fsspec.url_to_fs(url)
    return hashlib.sha256(b"".join(fs.cat_file(f"{path}/{name}") for name in names)).hexdigest()


class Folder:
    """The target.

    Raises:
        UsageError: something else is there, which also `overwrite` leaves alone, or all of it is.
    """

    def __init__(self, url: str, asked: str, overwrite: bool) -> None:
        self.url = url.rstrip("/")
        self._fs, self._root = fsspec.url_to_fs(self.url)
        self._fs.invalidate_cache()
        if strangers := sorted(name for name in self._names() if not _OWN.fullmatch(name)):
            raise UsageError(f"{self.url}/ holds other files than predictions ({strangers[0]}): give another name")
        if overwrite:
            for name in self._names():
                self._fs.rm(f"{self._root}/{name}")
            self._fs.invalidate_cache()
        names = self._names()
        if DONE in names:
            raise UsageError(f"{self.url}/ exists: give another name, or --overwrite")
        if names and self._stored() != asked:
            raise UsageError(f"{self.url}/ holds part of other predictions: give another name, or --overwrite")
        if not names:
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(f"{self._root}/{ASKED}", json.dumps({"asked": asked}).encode())

    def _names(self) -> set[str]:
        if not self._fs.exists(self._root):
            return set()
        if self._fs.isfile(self._root):
            raise UsageError(f"{self.url} is a file: give another name for a folder")
        paths = {path.rstrip("/") for path in self._fs.ls(self._root, detail=False)}
        return {path.rsplit("/", 1)[1] for path in paths - {self._root}}  # some stores list a folder in itself

    def _stored(self) -> str | None:
        """None: nothing that can be read, as of a process that was killed while it wrote."""
        try:
            asked: str = json.loads(self._fs.cat_file(f"{self._root}/{ASKED}"))["asked"]
        except (FileNotFoundError, ValueError):
            return None
        return asked

    def missing(self, parts: Iterable[Part]) -> list[Part]:
        """Those that are not there yet."""
        there = self._names()
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
        for name in self._names():
            if name.endswith(".tmp"):  # of a process that was killed
                self._fs.rm(f"{self._root}/{name}")
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
