"""What a packer holds of every chunk and shard until the tables are written, and while they are.

    python -m benchmarks.packing_memory [--chunks 31250 312500 3125000]

Of a pack only this grows with the number of records: of each shard its names and digests, of each chunk a row. Here the
rows of so many chunks (256 a shard, of 64 records in three parts) come from nowhere, as workers would send them, and
the end of a pack makes its tables of them. Bytes as the kernel counts resident pages, each number in a process of its
own, which has made the tables of a few chunks before (so libraries are loaded).
"""

from __future__ import annotations

import argparse
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.packing import SCHEMA
from data_shards.packing.finish import finish
from data_shards.packing.sealed import Sealed
from data_shards.packing.units.totals import Totals
from data_shards.shards.contents.shards import IndexFile
from data_shards.shards.lineage import Lineage
from data_shards.shards.storage import Storage

SHARD_CHUNKS, RECORDS = 256, 64
PARTS = ("train", "val", "test")


def sealed(number: int) -> Sealed:
    """What a worker sends of a shard."""
    rng = np.random.default_rng(number)
    length_k = rng.integers(60_000, 70_000, SHARD_CHUNKS)
    offset_k, records_k = np.cumsum(length_k) - length_k, np.full(SHARD_CHUNKS, RECORDS)
    crc32_k = rng.integers(0, 1 << 32, SHARD_CHUNKS)
    train_k = rng.binomial(RECORDS, 0.8, SHARD_CHUNKS)
    val_k = rng.binomial(RECORDS - train_k, 0.5)
    parts_kC = np.stack([train_k, val_k, RECORDS - train_k - val_k], axis=1).astype(np.int32)
    rows_k5 = np.stack((offset_k, length_k, records_k, crc32_k, records_k), axis=1)
    digest, size = rng.bytes(32).hex(), int(length_k.sum()) + 1024
    index = IndexFile(f"shard-{number:05d}-{digest[:12]}.index", 600_000, rng.bytes(32).hex())
    own = Sealed(
        f"shard-{number:05d}-{digest[:12]}.tar",
        size,
        digest,
        SHARD_CHUNKS * RECORDS,
        index,
        rows_k5,
        parts_kC,
        parts_kC,
    )
    found: Sealed = pickle.loads(pickle.dumps(own))  # noqa: S301 - as it comes from another process
    return found


def ended(own: list[Sealed]) -> None:
    """The end of a pack."""
    totals = Totals(SCHEMA)
    totals.columns = {("default", part): number for number, part in enumerate(PARTS)}
    totals.records = sum(shard.records for shard in own)
    finish(Storage("memory://tables"), totals, own, {}, {}, Lineage())


def resident(what: str) -> int:
    """A line of the process's status, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[what].split()[0]) << 10


def measured(shards: int, answers: Any) -> None:
    """In a process of its own: bytes with the rows of all chunks, and the most while their tables are made."""
    ended([sealed(number) for number in range(4)])
    before = resident("VmRSS")
    own = [sealed(number) for number in range(shards)]
    rows = resident("VmRSS") - before
    ended(own)
    answers.put((rows, resident("VmHWM") - before))


def main() -> None:
    """Measure and print."""
    from benchmarks.common import last_line, table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, nargs="+", default=[31_250, 312_500, 3_125_000])
    context, rows, figures = multiprocessing.get_context("spawn"), [], {}
    for chunks in parser.parse_args().chunks:
        shards, answers = -(-chunks // SHARD_CHUNKS), context.Queue()
        process = context.Process(target=measured, args=(shards, answers))
        process.start()
        held, most = answers.get()
        process.join()
        count = shards * SHARD_CHUNKS
        rows.append([f"{count * RECORDS:,}", f"{count:,}", f"{held / 2**20:.1f}", f"{most / 2**20:.1f}",
                     f"{held / count:.0f}", f"{most / count:.0f}"])  # fmt: skip
        figures |= {f"rows {count}": held / count, f"most {count}": most / count}
    table(("records", "chunks", "rows MiB", "with tables MiB", "rows, bytes a chunk", "with tables"), rows)
    last_line("packing_memory", figures)


if __name__ == "__main__":
    main()
