"""A data set of a billion records: opening it, handing it to loaders, the order of an epoch, a step's positions.

    python -m benchmarks.manifest [--chunks 16000000] [--shards 100000] [--ranks 2] [--loaders 4] [--work DIR]

A head with tables of so many shards and chunks of 64 records is made (no shard is: nothing is read from one). Then a
node's processes do what they do at the start of a run, each in a process of its own: the first opens the manifest and
makes what the node shares, the others map it; a rank hands its data to its loaders (pickled and unpickled, as torch
does it); each makes the order of an epoch and the positions of steps.

`resident` is what the processes hold beyond what they held before, as the system counts it: private pages of every
process, and pages of shared files once (Pss), over the number of chunks. Seconds, and seconds of the processor where
others are at work beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import pickle
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import last_line, table
from data_shards import DataConfig, DatasetSchema, ModalitySpec, TaskSpec, open_manifest
from data_shards.loading.loader import _Steps
from data_shards.loading.shares import Place
from data_shards.records.statistics import Accumulator
from data_shards.shards.contents.chunks import ChunkTable
from data_shards.shards.contents.shards import ShardList
from data_shards.shards.head import Head, head_bytes, tables_of
from data_shards.shards.lineage import Lineage
from data_shards.shards.manifest import FILE

RECORDS = 64  # of a chunk
BATCHES = (4_096, 32_768, 131_072)
STEPS = 20
SCHEMA = DatasetSchema("made-up", (ModalitySpec("x", "vector", channels=("a", "b")),), (TaskSpec("label", "binary"),))
PARTS = (("default", "train"), ("default", "val"), ("default", "test"))


def make(folder: Path, shards: int, chunks: int) -> None:
    """Head and tables in `folder`."""
    each, rng = chunks // shards, np.random.default_rng(0)
    length_K = rng.integers(800_000, 1_600_000, each * shards, dtype=np.int64)
    end_SK = length_K.reshape(shards, each).cumsum(1)
    train_K = rng.binomial(RECORDS, 0.8, len(length_K))
    val_K = rng.binomial(RECORDS - train_K, 0.5)
    parts_KC = np.stack([train_K, val_K, RECORDS - train_K - val_K], 1).astype(np.int32)
    records_K = np.full(len(length_K), RECORDS)
    crc32_K = rng.integers(0, 1 << 32, len(length_K))
    offset_K = (end_SK - length_K.reshape(shards, each)).ravel()
    table_K = ChunkTable.of(np.full(shards, each), offset_K, length_K, records_K, crc32_K, parts_KC)
    names = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(shards)]
    numbers = {
        "bytes": end_SK[:, -1] + 1024,
        "records": np.full(shards, each * RECORDS),
        "index_bytes": np.full(shards, each * 4096),
    }
    tars, indices = ([f"shard-{n:06d}-{name[:12]}.{end}" for n, name in enumerate(names)] for end in ("tar", "index"))
    own = ShardList(ShardList.arrays_of(tars, names, indices, names, numbers), table_K)
    accumulator = Accumulator(SCHEMA)
    tables, files = tables_of(own, table_K, {"default": accumulator}, moments=False)
    sums, total = parts_KC.sum(0, dtype=np.int64).tolist(), len(length_K) * RECORDS
    splits = {"default": {part: count for (_, part), count in zip(PARTS, sums, strict=True)}}
    statistics_ = {"default": accumulator.summary()}
    head = Head(SCHEMA, {}, total, total, 0, PARTS, splits, statistics_, tables, {}, Lineage())
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / FILE).write_bytes(head_bytes(head))


def private_and_shared() -> tuple[int, int]:
    """Bytes that only this process holds, and its share of those that several map."""
    lines = dict(line.split()[:2] for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    private = int(lines["Private_Clean:"]) + int(lines["Private_Dirty:"])
    return private << 10, (int(lines["Pss:"]) - private) << 10


def timed(do: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    found = do()
    return found, time.perf_counter() - start


def used(do: Callable[[], Any]) -> tuple[Any, float, float]:
    """As `timed`, and seconds of the processor."""
    start = time.process_time()
    return *timed(do), time.process_time() - start


def process(folder: str, scratch: str, batch_size: int, go: Any, done: Any, answers: Any) -> None:
    """What a process of a node does; the others begin when the first is done."""
    tempfile.tempdir = scratch
    go.wait()
    before = private_and_shared()[0]
    manifest, opened, opened_cpu = used(lambda: open_manifest(folder))
    config, order = DataConfig(url=folder), {"batch_size": batch_size, "shuffle": True, "seed": 0}
    steps, prepared, prepared_cpu = used(lambda: _Steps(manifest, config, "train", order, Place(0, 1, 1), SCHEMA))
    data, out = timed(lambda: pickle.dumps(steps))
    there, into = timed(lambda: pickle.loads(data))  # noqa: S301 - made here
    made, ordered, ordered_cpu = used(lambda: there._order(0))
    positions = {}
    for size in BATCHES:
        taken = [timed(lambda i=i, size=size: made.numbers(i * size, (i + 1) * size))[1] for i in range(STEPS)]
        positions[size] = statistics.median(taken)
    answers.put(
        {"open": opened, "prepare": prepared, "hand over": out + into, "bytes": len(data), "order": ordered,
         "positions": positions, "before": before,
         "cpu": {"open": opened_cpu, "prepare": prepared_cpu, "order": ordered_cpu}}
    )  # fmt: skip
    done.wait()
    answers.put(private_and_shared())


def node(folder: Path, scratch: Path, processes: int) -> tuple[list[dict[str, Any]], int]:
    """Answers of every process of a node, the first one's first, and bytes that all of them hold together."""
    context = multiprocessing.get_context("spawn")
    answers, done = context.Queue(), context.Event()
    found, started = [], []
    for _ in range(processes):
        go = context.Event()
        started.append(context.Process(target=process, args=(str(folder), str(scratch), 4096, go, done, answers)))
        started[-1].start()
        go.set()
        found.append(answers.get())
    done.set()
    held = [answers.get() for _ in started]
    for each in started:
        each.join()
    grown = sum(private for private, _ in held) - sum(answer["before"] for answer in found)
    return found, grown + sum(shared for _, shared in held)


def main() -> None:
    """Parse, make, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=16_000_000, help="of 64 records")
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--ranks", type=int, default=2, help="of a node, each with its loaders")
    parser.add_argument("--loaders", type=int, default=4, help="of each rank")
    parser.add_argument("--work", type=Path, help="folder for the made data set, which is kept; none: it is not")
    chosen = parser.parse_args()
    work = chosen.work or Path(tempfile.mkdtemp())
    scratch = Path(tempfile.mkdtemp())
    try:
        if not (work / FILE).exists():
            work.mkdir(parents=True, exist_ok=True)
            make(work, chosen.shards, chosen.chunks)
        processes = chosen.ranks * (1 + chosen.loaders)
        found, held = node(work, scratch, processes)
    finally:
        shutil.rmtree(scratch)
        if chosen.work is None:
            shutil.rmtree(work)
    first, *others = found
    rows = [
        (name, first[name], first["cpu"].get(name, ""), statistics.median(each[name] for each in others))
        for name in ("open", "prepare", "hand over", "order")
    ]
    rows += [(f"positions of {size}", first["positions"][size], "",
              statistics.median(each["positions"][size] for each in others)) for size in BATCHES]  # fmt: skip
    table(("seconds", "first process", "of the processor", "others"), rows)
    resident = held / chosen.chunks
    told = f"{resident:.1f} bytes a chunk; to a loader travel {first['bytes']} bytes"
    print(f"{processes} processes hold {held / 2**30:.2f} GiB: {told}")
    figures = {name: value for name, value, _, _ in rows} | {f"{name}, others": value for name, _, _, value in rows}
    figures |= {f"{name}, processor": value for name, value in first["cpu"].items()}
    last_line("manifest", figures | {"bytes a chunk": resident}, processes=processes, chunks=chosen.chunks)


if __name__ == "__main__":
    main()
