"""Packing: records a second and the peak memory of every process, at some number of records and at ten times as many.

    python -m benchmarks.packing [--records 20000] [--workers 2] [--address RAY] [--work DIR]

Tiny records (a vector of two numbers and a label) from a source that makes them up, so what is measured is the packer.
Each pack runs in a process of its own; the memory of it and of all processes below it is looked at every 50 ms. Of
processes of one kind (this one, `worker` ones) the largest peak is shown, in MiB. With `--address` also by
tasks of that Ray. The digests of one size must be equal.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from data_shards import DatasetSchema, ModalitySpec, Record, TaskSpec, pack
from data_shards.sources.base import Source, SourceOptions, hashed_part
from launch.runs.crews import crew_at

SCHEMA = DatasetSchema("tiny", (ModalitySpec("x", "vector", shape=(2,)),), (TaskSpec("label", "binary"),))
UNIT = 5_000
SHARES = (("train", 0.8), ("val", 0.1), ("test", 0.1))
MIB = 1 << 20


class Tiny(Source):
    """So many records."""

    schema = SCHEMA

    def __init__(self, records: int) -> None:
        super().__init__(SourceOptions())
        self.records_count = records

    def units(self) -> range:
        """First records of the units."""
        return range(0, self.records_count, UNIT)

    def read(self, unit: int, notes: Counter[str]) -> Iterator[Record]:
        """Records of one unit."""
        count = min(UNIT, self.records_count - unit)
        values = np.random.default_rng(unit).standard_normal((count, 2)).astype(np.float32)
        for number, value in enumerate(values, start=unit):
            key = f"r{number:010d}"
            yield Record(key, {"x": value}, {"label": float(number % 2)}, {"default": hashed_part(key, SHARES)})


def packed(records: int, workers: int, address: str | None, folder: str) -> None:
    """In a process of its own: pack, and leave the report."""
    with crew_at(address, workers, debug=False) as crew:
        report = pack(Tiny(records), f"{folder}/set", crew=crew, shard_bytes=8 * MIB, log_s=1)
    Path(folder, "report.json").write_text(json.dumps(report))


def measured(records: int, workers: int, address: str | None, work: str | None) -> dict[str, Any]:
    """Seconds, digest and peaks (MiB) of one pack."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        process = multiprocessing.get_context("spawn").Process(target=packed, args=(records, workers, address, folder))
        process.start()
        peaks, ended = dict[str, float](), threading.Event()
        watcher = threading.Thread(target=_watch, args=(psutil.Process(process.pid), peaks, ended))
        watcher.start()
        process.join()
        ended.set()
        watcher.join()
        report = json.loads(Path(folder, "report.json").read_text())
    return {"seconds": report["seconds"], "digest": report["digest"], "shards": report["shards"], "peaks": peaks}


def _watch(process: psutil.Process, peaks: dict[str, float], ended: threading.Event) -> None:
    while not ended.is_set():
        try:
            family = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for each in family:
            try:
                words, resident = " ".join(each.cmdline()), each.memory_info().rss / MIB
            except psutil.Error:
                continue
            what = "packer" if each == process else "worker" if "spawn_main" in words or "ray::" in words else "other"
            peaks[what] = max(peaks.get(what, 0.0), resident)
        time.sleep(0.05)


def main() -> None:
    """Measure and print."""
    from benchmarks.common import last_line, table  # not above: workers would load torch with it

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--address", default=None, help="also by the workers of this Ray")
    parser.add_argument("--work", default=None, help="folder for the data sets")
    chosen = parser.parse_args()
    ways: dict[str, tuple[int, str | None]] = {"one process": (1, None), "processes": (chosen.workers, None)}
    if chosen.address:
        ways["Ray"] = (chosen.workers, chosen.address)
    rows, results = [], {}
    for name, (workers, address) in ways.items():
        for records in (chosen.records, 10 * chosen.records):
            found = results[f"{name} {records}"] = measured(records, workers, address, chosen.work)
            rate = records / found["seconds"]
            shown = [f"{found['peaks'].get(what, 0):.0f}" for what in ("packer", "worker")]
            rows.append([name, f"{records:,}", f"{rate:,.0f}", *shown, found["digest"][:12]])
    for records in (chosen.records, 10 * chosen.records):
        assert len({own["digest"] for name, own in results.items() if name.endswith(f" {records}")}) == 1
    table(["by", "records", "records/s", "packer MiB", "worker MiB", "digest"], rows)
    last_line("packing", {name: own["seconds"] for name, own in results.items()}, results=results)


if __name__ == "__main__":
    main()
