"""The verb `predict`: predictions of a checkpoint for every record of a data set, or each moment, as one Parquet file,
or as a folder of them (`parts`).

One process, or several over Ray with parallel.workers=N. Workers take stretches of the data set; the driver puts their
rows in the order of the data set and writes them, so the file does not depend on how many workers there were. The file
appears when the last row is in it, and not at all if anything fails.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

from data_shards.errors import skipped_words
from data_shards.paths import absolute_url, is_local
from launch.cluster.environment import prepare_for_ray
from launch.errors import RunFailedError, UsageError
from launch.output.tables import print_json_line
from launch.runs.embed import sources_of
from launch.runs.prediction.parts import (
    PART_SAMPLES,
    Folder,
    Part,
    asked_of,
    is_folder,
    parts_of,
    write_part,
)
from launch.runs.requests import Asked, request_of
from trainer.config.run_config import RunConfig

if TYPE_CHECKING:
    import pyarrow as pa

    from trainer.ensemble.answers import Answers, AnyRequest
    from trainer.inference.predictor import Stretch

    Rows = Iterator[tuple[pa.Table, dict[str, int]]]


logger = logging.getLogger("fleximoe")


def predict_records(
    checkpoint: str,
    data: str | None,
    out: str,
    part: str | None,
    explain: bool,
    calibrated: bool,
    encode: Sequence[str],
    overrides: Sequence[str],
    overwrite: bool,
    debug: bool,
    embeddings: bool = False,
) -> None:
    """Predict, write `out`, print what was done as the last line. Raises as `predict_into`."""
    done = predict_into(
        checkpoint, data, out, part, explain, calibrated, overrides, overwrite, debug, encode, embeddings
    )
    print_json_line(done)


def predict_into(
    checkpoint: str,
    data: str | None,
    out: str,
    part: str | None = None,
    explain: bool = False,
    calibrated: bool = False,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    debug: bool = False,
    encode: Sequence[str] = (),
    embeddings: bool = False,
) -> dict[str, Any]:
    """Predict and write `out`; returns what was done.

    Raises:
        UsageError: `out` exists. RunFailedError: a worker failed for good. ValueError: wrong checkpoint or data.
    """
    started, folder = time.perf_counter(), is_folder(out)
    out, checkpoint = absolute_url(out), absolute_url(checkpoint)
    data = None if data is None else absolute_url(data)
    asked = Asked(data, part, tuple(overrides), explain, calibrated, embeddings, sources_of(encode))
    config, request = request_of(checkpoint, asked)
    by = {"checkpoint": getattr(request, "checkpoint", checkpoint), "workers": config.parallel.workers}
    if folder:
        done = {"out": f"{out.rstrip('/')}/", **_into_folder(config, request, out, part, overwrite, debug, by)}
    else:
        done = {"out": out, **_into_file(config, request, out, part, overwrite, debug), **by}
    return {**done, "seconds": round(time.perf_counter() - started, 2)}


def _into_file(
    config: RunConfig, request: AnyRequest, out: str, part: str | None, overwrite: bool, debug: bool
) -> dict[str, Any]:
    fs, path = fsspec.url_to_fs(out)
    if fs.exists(path) and not overwrite:
        raise UsageError(f"{out} exists: give another name, or --overwrite")
    rows = _on_ray(config, request, part, debug) if config.parallel.workers > 1 else _here(request)
    found: Counter[str] = Counter()
    _, skipped = write_whole(_counted(rows, found), out)
    return {**found, "skipped": dict(skipped)}


def _into_folder(
    config: RunConfig,
    request: AnyRequest,
    out: str,
    part: str | None,
    overwrite: bool,
    debug: bool,
    by: dict[str, Any],
) -> dict[str, Any]:
    parts = parts_of(_stretches(config, part), PART_SAMPLES)
    if not parts:
        raise UsageError("there is no record to predict")
    folder = Folder(out, asked_of(request, config, PART_SAMPLES), overwrite)
    missing = folder.missing(parts)
    if len(missing) < len(parts):
        logger.info("%d of %d files are there already: going on behind them", len(parts) - len(missing), len(parts))
    started, rows = time.perf_counter(), 0
    for number, written in enumerate(_written(config, request, missing, folder.url, debug), 1):
        rows += written
        spent = time.perf_counter() - started
        logger.info(
            "file %d of %d: %.0f rows a second, about %.0f s left",
            len(parts) - len(missing) + number,
            len(parts),
            rows / spent,
            spent / number * (len(missing) - number),
        )
    return folder.finish(parts, by)


def _written(config: RunConfig, request: AnyRequest, parts: list[Part], url: str, debug: bool) -> Iterator[int]:
    """Rows of each file, when it is there."""
    if config.parallel.workers > 1 and parts:
        with _pool(config, request, len(parts), debug) as pool:
            yield from pool.map_unordered(lambda actor, part: actor.write.remote(part, url), parts)
    elif parts:
        answers = _opened(request)
        for part in parts:
            yield write_part(answers, part, url)


def _opened(request: AnyRequest) -> Answers:
    from trainer.ensemble.answers import open_answers
    from trainer.worker.context import default_device

    return open_answers(request, default_device(0))


def _here(request: AnyRequest) -> Rows:
    answers = _opened(request)
    for stretch in answers.stretches():
        yield answers(stretch)


def _counted(rows: Rows, found: Counter[str]) -> Rows:
    """The same rows; counts their `records`, and `moments` where records are seen at moments."""
    for table, lost in rows:
        # All rows of a record are in one table.
        found["records"] += len(table["record"].unique())
        if "moment" in table.column_names:
            found["moments"] += len(table)
        yield table, lost


def _on_ray(config: RunConfig, request: AnyRequest, part: str | None, debug: bool) -> Rows:
    """Rows in the order of the data set."""
    stretches = _stretches(config, part)
    # Rows are yielded inside: this Ray lives until the last one is taken.
    with _pool(config, request, len(stretches), debug) as pool:
        yield from pool.map(lambda actor, stretch: actor.predict.remote(stretch), stretches)


def _stretches(config: RunConfig, part: str | None) -> list[Stretch]:
    from data_shards import open_manifest
    from trainer.inference.predictor import cut_stretches

    return cut_stretches(open_manifest(config.data.url, config.data.storage_options).counts(config.data.split, part))


@contextmanager
def _pool(config: RunConfig, request: AnyRequest, items: int, debug: bool) -> Iterator[Any]:
    """Workers over Ray. One that dies is started again, and what it was asked with it. Raises RunFailedError."""
    prepare_for_ray(config)
    import ray
    from ray.util import ActorPool

    from launch.cluster.ray_session import gpus_wanted, ray_session

    with ray_session(config, debug):
        retries = config.cluster.max_failures
        worker = ray.remote(PredictWorker).options(
            num_cpus=config.cluster.cpus_per_worker,
            num_gpus=1 if gpus_wanted(config) else 0,
            max_restarts=retries,
            max_task_retries=retries,
        )
        number = min(config.parallel.workers, items)
        try:
            yield ActorPool([worker.remote(request) for _ in range(number)])
        except ray.exceptions.RayTaskError as error:
            raise RunFailedError(f"{type(error.cause).__name__}: {error.cause}") from error
        except ray.exceptions.RayError as error:
            raise RunFailedError(str(error).strip().split("\n")[0]) from error


class PredictWorker:
    """A Ray actor around what answers."""

    def __init__(self, request: AnyRequest) -> None:
        import torch

        from trainer.ensemble.answers import open_answers
        from trainer.worker.context import default_device

        torch.set_num_threads(1)
        self._answers = open_answers(request, default_device(0))

    def predict(self, stretch: Any) -> tuple[Any, dict[str, int]]:
        """Rows of one stretch."""
        return self._answers(stretch)

    def write(self, part: Part, url: str) -> int:
        """Rows of one file, which is then there."""
        return write_part(self._answers, part, url)


def write_whole(rows: Rows, url: str) -> tuple[int, Counter[str]]:
    """Write tables as one Parquet file that appears complete or not at all; (rows written, records skipped).

    Raises:
        UsageError: there are no records. RunFailedError: none of them could be read.

    Rows go to a temporary file first: beside the target, or on local disk if the target is in an object store.
    """
    import pyarrow.parquet

    fs, path = fsspec.url_to_fs(url)
    local = is_local(url)
    folder = Path(path).parent if local else Path(tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{Path(path).name}.{os.getpid()}.tmp"
    skipped: Counter[str] = Counter()
    written, writer = 0, None
    try:
        for table, lost in rows:
            if writer is None:
                writer = pyarrow.parquet.ParquetWriter(temporary, table.schema)
            writer.write_table(table)
            written += len(table)
            skipped.update(lost)
        if writer is None:
            raise UsageError("there is no record to predict")
        if not written:
            raise RunFailedError(f"no record could be read, so nothing is predicted: {skipped_words(skipped)}")
        writer.close()
        if local:
            temporary.replace(path)
        else:
            fs.put_file(str(temporary), path)
    finally:
        if writer is not None:
            writer.close()
        temporary.unlink(missing_ok=True)
    return written, skipped
