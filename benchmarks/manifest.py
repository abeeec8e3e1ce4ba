"""A data set of a billion records: opening it, handing it to loaders, the order of an epoch, a step's positions.

    python -m benchmarks.manifest [--chunks 16000000] [--shards 100000] [--ranks 2] [--loaders 4] [--work DIR]

A head with tables of so many shards and chunks of 64 records is made. Of the shards only those exist that the first
steps of an epoch want: the same packed records and index under the name of each, with their own lengths and digests in
the tables. Then a node's processes do what they do at the start of a run, each in a process of its own: the first
opens the manifest and makes what the node shares, the others map it; a rank hands its data to its loaders (pickled and
unpickled, as torch does it); each makes the order of an epoch and the positions of steps, and its rank's share of the
step that is this loader's first one: indices and chunks read and compared with the tables, records decoded, tensors.
At the end one rank does all of that by the loader itself, from nothing, with processes that it starts.

`resident` is what the processes hold beyond what they held before, as the system counts it: private pages of every
process before it reads its batch, and pages of shared files once (Pss), over the number of chunks; of the order alone
its file, those of its pages that are mapped, and the most that the process that made it held meanwhile. Seconds, and
seconds of the processor where others are at work beside it. Files were just written, so they are read from memory.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
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
from benchmarks.packing import Tiny
from data_shards import Batch, DataConfig, StepLoader, open_manifest, pack
from data_shards.loading.loader import _Steps
from data_shards.loading.order import EpochOrder
from data_shards.loading.shares import Place
from data_shards.records.statistics import Accumulator
from data_shards.shards.contents.chunks import ChunkTable
from data_shards.shards.contents.shards import ShardList
from data_shards.shards.head import Head, head_bytes, tables_of
from data_shards.shards.lineage import Lineage
from data_shards.shards.manifest import FILE
from data_shards.shards.tables import SHARED_ABOVE

RECORDS = 64  # of a chunk
BATCHES = (4_096, 32_768, 131_072)
BATCH = BATCHES[0]
STEPS, SEED, PART = 20, 0, ("default", "train")


def make(folder: Path, shards: int, chunks: int, steps: int) -> None:
    """Head, tables, and the shards of the first steps, in `folder`."""
    each, rng = chunks // shards, np.random.default_rng(0)
    pack(Tiny(each * RECORDS), str(folder / "one"), chunk_records=RECORDS, shard_bytes=1 << 40)
    one = open_manifest(str(folder / "one"))
    length_K = rng.integers(800_000, 1_600_000, each * shards, dtype=np.int64)
    end_SK = length_K.reshape(shards, each).cumsum(1)
    train_K = rng.binomial(RECORDS, 0.8, len(length_K))
    val_K = rng.binomial(RECORDS - train_K, 0.5)
    by_part = {"train": train_K, "val": val_K, "test": RECORDS - train_K - val_K}
    parts_KC = np.stack([by_part[part] for _, part in one.columns], 1).astype(np.int32)
    records_K = np.full(len(length_K), RECORDS)
    crc32_K = rng.integers(0, 1 << 32, len(length_K))
    offset_K = (end_SK - length_K.reshape(shards, each)).ravel()
    # What lies in a chunk moves no other one, as long as there is something of the part.
    wanted_S = np.unique(first_chunks(parts_KC[:, one.column(*PART)], steps + 1) // each)
    for column_K, own_k in (
        (length_K, one.chunks.length_K), (offset_K, one.chunks.offset_K), (crc32_K, one.chunks.crc32_K),
        (parts_KC, one.chunks.parts_KC),
    ):  # fmt: skip
        column_K.reshape(shards, each, *column_K.shape[1:])[wanted_S] = own_k
    end_SK = length_K.reshape(shards, each).cumsum(1)
    assert set(first_chunks(parts_KC[:, one.column(*PART)], steps) // each) <= set(wanted_S)
    table_K = ChunkTable.of(np.full(shards, each), offset_K, length_K, records_K, crc32_K, parts_KC)
    names = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(shards)]
    numbers = {
        "bytes": end_SK[:, -1] + 1024,
        "records": np.full(shards, each * RECORDS),
        "index_bytes": np.full(shards, each * 4096),
    }
    index_names, (shard,) = list(names), one.shards
    for n in wanted_S.tolist():
        names[n], index_names[n] = shard.sha256, shard.index.sha256
        numbers["bytes"][n], numbers["index_bytes"][n] = shard.bytes, shard.index.bytes
    tars, indices = ([f"shard-{n:06d}-{name[:12]}.{end}" for n, name in enumerate(names)] for end in ("tar", "index"))
    for n in wanted_S.tolist():
        for name, source in ((tars[n], shard.name), (indices[n], shard.index.name)):
            (folder / name).hardlink_to(folder / "one" / source)
    own = ShardList(ShardList.arrays_of(tars, names, indices, index_names, numbers), table_K)
    accumulator = Accumulator(one.schema)
    tables, files = tables_of(own, table_K, {"default": accumulator}, moments=False)
    sums, total = parts_KC.sum(0, dtype=np.int64).tolist(), len(length_K) * RECORDS
    splits = {"default": {part: count for (_, part), count in zip(one.columns, sums, strict=True)}}
    statistics_ = {"default": accumulator.summary()}
    head = Head(one.schema, {}, total, total, 0, one.columns, splits, statistics_, tables, {}, Lineage())
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / FILE).write_bytes(head_bytes(head))


def first_chunks(counts_K: np.ndarray, steps: int) -> np.ndarray:
    """Chunks that the first steps of an epoch take records from."""
    return EpochOrder(counts_K, SEED, 0, DataConfig(url=".").window_chunks).take(0, steps * BATCH)[0]


def private_bytes() -> int:
    """Bytes that only this process holds."""
    lines = dict(line.split()[:2] for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    private = int(lines["Private_Clean:"]) + int(lines["Private_Dirty:"])
    return private << 10


def of_files(folder: str) -> dict[str, int]:
    """Bytes in memory of each mapped file below a folder, this process's share of them."""
    found, path = dict[str, int](), ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            path = words[5] if len(words) > 5 and words[5].startswith(folder) else ""
        elif path and words[0] == "Pss:":
            found[path] = found.get(path, 0) + (int(words[1]) << 10)
    return found


def peak(do: Callable[[], Any]) -> tuple[Any, int]:
    """What it gives, and the most bytes that this process held meanwhile, above what it held before."""
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's own record of the largest begins anew
    before = resident("VmRSS")
    found = do()
    return found, resident("VmHWM") - before


def resident(what: str) -> int:
    """A line of the process's status, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[what].split()[0]) << 10


def timed(do: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    found = do()
    return found, time.perf_counter() - start


def used(do: Callable[[], Any]) -> tuple[Any, float, float]:
    """As `timed`, and seconds of the processor."""
    start = time.process_time()
    return *timed(do), time.process_time() - start


def process(folder: str, scratch: str, seat: tuple[int, int, int], go: Any, done: Any, answers: Any) -> None:
    """What a process of a node does; the others begin when the first is done.

    Args:
        seat: its rank, their number, and which of the rank's loaders it is.
    """
    tempfile.tempdir = scratch
    go.wait()
    before = private_bytes()
    manifest, opened, opened_cpu = used(lambda: open_manifest(folder))
    config, order = DataConfig(url=folder), {"batch_size": BATCH, "shuffle": True, "seed": SEED}
    rank, ranks, loader = seat
    steps, prepared, prepared_cpu = used(
        lambda: _Steps(manifest, config, PART[1], order, Place(rank, ranks, 1), manifest.schema)
    )
    data, out = timed(lambda: pickle.dumps(steps))
    there, into = timed(lambda: pickle.loads(data))  # noqa: S301 - made here
    mapped = set(of_files(scratch))
    (made, ordered, ordered_cpu), most = peak(lambda: used(lambda: there._order(0)))
    own = (set(of_files(scratch)) - mapped).pop()
    positions = {}
    for size in BATCHES:
        taken = [timed(lambda i=i, size=size: made.numbers(i * size, (i + 1) * size))[1] for i in range(STEPS)]
        positions[size] = statistics.median(taken)
    held = private_bytes()
    step, read, read_cpu = used(lambda: there[0, loader * BATCH])
    if step.error is not None:
        raise step.error
    keys = [key for buffer in step.buffers for key in Batch.from_buffer(buffer).keys]
    answers.put(
        {"open": opened, "prepare": prepared, "hand over": out + into, "bytes": len(data), "order": ordered,
         "positions": positions, "read": read,
         "grown": held - before, "step": loader, "samples": len(keys), "io": step.io,
         "peak of the order": most, "file of the order": Path(own).stat().st_size,
         "cpu": {"open": opened_cpu, "prepare": prepared_cpu, "order": ordered_cpu, "read": read_cpu}}
    )  # fmt: skip
    done.wait()
    files = of_files(scratch)
    answers.put((sum(files.values()), files[own]))


def node(folder: Path, scratch: Path, ranks: int, loaders: int) -> tuple[list[dict[str, Any]], int, int]:
    """Answers of every process of a node, the first one's first; bytes that all of them hold together, and of those
    the order's."""
    context = multiprocessing.get_context("spawn")
    answers, done = context.Queue(), context.Event()
    found, started = [], []
    for number in range(ranks * (1 + loaders)):
        go, seat = context.Event(), (number // (1 + loaders), ranks, max(0, number % (1 + loaders) - 1))
        started.append(context.Process(target=process, args=(str(folder), str(scratch), seat, go, done, answers)))
        started[-1].start()
        go.set()
        found.append(answers.get())
    done.set()
    held = [answers.get() for _ in started]
    for each in started:
        each.join()
    assert sum(found[rank * (1 + loaders)]["samples"] for rank in range(ranks)) == BATCH  # of the first step
    grown = sum(answer["grown"] for answer in found)
    of_each = ", ".join(f"{answer['grown'] / 2**20:.0f}" for answer in found)
    files = f"files of the data's tables and order, mapped by all, {sum(shared for shared, _ in held) / 2**20:.0f}"
    print(f"MiB: {files}, private of each process {of_each}")
    return found, grown + sum(shared for shared, _ in held), sum(order for _, order in held)


def whole_rank(folder: Path, ranks: int, loaders: int) -> dict[str, float]:
    """One rank of a node on which nothing is shared yet, from opening to the first batch of its loader."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as scratch:
        started = context.Process(target=_rank, args=(str(folder), scratch, ranks, loaders, answers))
        started.start()
        found: dict[str, float] = answers.get()
        started.join()
    return found


def _rank(folder: str, scratch: str, ranks: int, loaders: int, answers: Any) -> None:
    os.environ["TMPDIR"] = tempfile.tempdir = scratch  # of the processes that it starts, too
    start = time.perf_counter()
    config = DataConfig(url=folder, workers=loaders, seed=SEED)
    loader = StepLoader(open_manifest(folder), config, PART[1], BATCH, 0, ranks)
    made = time.perf_counter()
    step = next(loader.steps(0))
    batch = time.perf_counter()
    samples = sum(len(own) for own in step.micro_batches)
    loader.close()
    times = os.times()
    cpu = times.user + times.system + times.children_user + times.children_system
    answers.put({"until loader": made - start, "until batch": batch - start, "samples": samples, "cpu": cpu})


def main() -> None:
    """Parse, make, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=16_000_000, help="of 64 records")
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--ranks", type=int, default=2, help="of a node, each with its loaders")
    parser.add_argument("--loaders", type=int, default=4, help="of each rank")
    parser.add_argument("--work", type=Path, help="folder for the made data set, which is kept; none: it is not")
    chosen = parser.parse_args()
    if chosen.chunks <= SHARED_ABOVE:
        raise SystemExit(f"of {chosen.chunks} chunks nothing is shared: measure more than {SHARED_ABOVE}")
    work = chosen.work or Path(tempfile.mkdtemp())
    scratch = Path(tempfile.mkdtemp())
    try:
        if not (work / FILE).exists():
            work.mkdir(parents=True, exist_ok=True)
            make(work, chosen.shards, chosen.chunks, max(1, chosen.loaders))
        found, held, order = node(work, scratch, chosen.ranks, chosen.loaders)
        whole = whole_rank(work, chosen.ranks, chosen.loaders)
    finally:
        shutil.rmtree(scratch)
        if chosen.work is None:
            shutil.rmtree(work)
    first, *others = found
    steps = ("open", "prepare", "hand over", "order", "read")
    rows = [
        (name, first[name], first["cpu"].get(name, ""), statistics.median(each[name] for each in others))
        for name in steps
    ]
    rows += [("all of these: first batch", *(sum(row[column] or 0 for row in rows) for column in (1, 2, 3)))]
    rows += [(f"positions of {size}", first["positions"][size], "",
              statistics.median(each["positions"][size] for each in others)) for size in BATCHES]  # fmt: skip
    table(("seconds", "first process", "of the processor", "others"), rows)
    resident, io, samples = held / chosen.chunks, first["io"], first["samples"]
    told = f"{resident:.1f} bytes a chunk; to a loader travel {first['bytes']} bytes"
    print(f"{len(found)} processes hold {held / 2**30:.2f} GiB: {told}")
    most, size = first["peak of the order"] / 2**20, first["file of the order"] / 2**20
    print(f"the order: a file of {size:.0f} MiB, {order / 2**20:.0f} mapped by all; while it is made {most:.0f} MiB")
    print(f"first batch of a rank: {samples} samples, {io['reads']} reads, {io['bytes']} bytes")
    parts = f"{whole['until loader']:.2f} s to its loader, {whole['until batch']:.2f} to its first batch"
    print(f"a rank with {chosen.loaders} loaders, from nothing: {parts}, {whole['cpu']:.2f} s of the processor")
    figures = {name: value for name, value, _, _ in rows} | {f"{name}, others": value for name, _, _, value in rows}
    figures |= {f"{name}, processor": value for name, value in first["cpu"].items()}
    figures |= {"bytes a chunk": resident, "bytes of the order": order, "peak of the order": first["peak of the order"]}
    last_line("manifest", figures | whole, processes=len(found), chunks=chosen.chunks)


if __name__ == "__main__":
    main()
