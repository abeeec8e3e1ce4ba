"""Packing: records a second, processor time and the peak memory of every process, at several numbers of records.

    python -m benchmarks.packing [--records 20000 200000] [--ways alone processes ray] [--workers 2] [--work DIR]

Tiny records (a vector of two numbers and a label) from a source that makes them up, so what is measured is the packer:
by one process, by worker processes, and by tasks of a local Ray. Each pack runs in a process of its own. Of processes
of one kind (the packer itself, workers, Ray's raylet and GCS, what else there is) the largest peak is shown, in MiB as
the kernel counts resident pages, with what is shared; and the seconds of all of them. Digests of one number of records
must be equal. With ``--keep FILE`` results are added to a file, and compared with those in it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from data_shards import DatasetSchema, ModalitySpec, Record, TaskSpec, pack
from data_shards.crew import Crew, Here, Processes
from data_shards.sources.base import Source, SourceOptions, hashed_part
from launch.cluster.environment import prepare_for_ray
from trainer.config.run_config import RunConfig

SCHEMA = DatasetSchema("tiny", (ModalitySpec("x", "vector", shape=(2,)),), (TaskSpec("label", "binary"),))
UNIT = 5_000
SHARES = (("train", 0.8), ("val", 0.1), ("test", 0.1))
SHARD, LOG_S = 16 << 20, 10.0
KINDS = ("packer", "worker", "raylet", "gcs", "other")


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


def packed(records: int, way: str, workers: int, folder: str) -> None:
    """In a process of its own: pack, and leave the report."""
    from benchmarks.packing import Tiny  # by a name that workers of a Ray know, too

    with crew_of(way, workers) as crew:
        report = pack(Tiny(records), f"{folder}/set", crew=crew, shard_bytes=SHARD, log_s=LOG_S)
    Path(folder, "report.json").write_text(json.dumps(report))


@contextlib.contextmanager
def crew_of(way: str, workers: int) -> Iterator[Crew]:
    """Who works: alone, processes, or tasks of a local Ray."""
    if way != "ray":
        yield Processes(workers) if way == "processes" else Here()
        return
    parallel = {"workers": workers, "expert_parallel": 1}
    config = RunConfig.of({"name": "crew", "data": {"url": "."}, "parallel": parallel})
    prepare_for_ray(config)
    from launch.cluster.ray_session import ray_session
    from launch.runs.ray_crew import RayCrew

    with ray_session(config):
        yield RayCrew(workers)


def measured(packs: Callable[..., None], job: Any, way: str, workers: int, work: str | None) -> dict[str, Any]:
    """Seconds, digest, and of each kind of process peaks (MiB) and processor seconds, of one pack.

    Args:
        packs: called with job, way, workers and a folder, leaves the report there.
    """
    with tempfile.TemporaryDirectory(dir=work) as folder:
        process = multiprocessing.get_context("spawn").Process(target=packs, args=(job, way, workers, folder))
        process.start()
        looks, ended = dict[int, tuple[str, float, float]](), threading.Event()
        watcher = threading.Thread(target=_watch, args=(psutil.Process(process.pid), looks, ended))
        watcher.start()
        process.join()
        ended.set()
        watcher.join()
        report = json.loads(Path(folder, "report.json").read_text())
    peaks, cpu = dict[str, float](), Counter[str]()
    for what, peak, seconds in looks.values():
        peaks[what] = max(peaks.get(what, 0.0), peak)
        cpu[what] += seconds
    return {key: report[key] for key in ("seconds", "digest", "shards", "chunks")} | {"peaks": peaks, "cpu": cpu}


def _watch(process: psutil.Process, looks: dict[int, tuple[str, float, float]], ended: threading.Event) -> None:
    while not ended.wait(0.25):
        try:
            family = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for each in family:
            try:
                times, words = each.cpu_times(), " ".join(each.cmdline())
                status = Path(f"/proc/{each.pid}/status").read_text()
            except (psutil.Error, OSError):
                continue
            found = re.search(r"VmHWM:\s+(\d+) kB", status)  # the kernel's own record of the largest
            if found:
                kind = "packer" if each == process else _kind(words)
                looks[each.pid] = (kind, int(found[1]) / 1024, times.user + times.system)


def _kind(words: str) -> str:
    # The raylet's words name what it starts, so it comes first.
    names = {"raylet/raylet": "raylet", "gcs_server": "gcs"}
    names |= {"spawn_main": "worker", "ray::": "worker", "default_worker": "worker"}
    return next((kind for word, kind in names.items() if word in words), "other")


def main() -> None:
    """Measure and print."""
    from benchmarks.common import last_line, table  # not above: workers would load torch with it

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--ways", nargs="+", default=["alone", "processes"], choices=["alone", "processes", "ray"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", default=None, help="folder for the data sets")
    parser.add_argument("--keep", type=Path, default=None, help="file for results of several runs")
    chosen = parser.parse_args()
    if chosen.work:
        Path(chosen.work).mkdir(parents=True, exist_ok=True)
    results = json.loads(chosen.keep.read_text()) if chosen.keep and chosen.keep.exists() else {}
    for records in chosen.records:
        for way in chosen.ways:
            results[f"{way} {records}"] = measured(packed, records, way, chosen.workers, chosen.work)
            if chosen.keep:
                chosen.keep.write_text(json.dumps(results))
        assert len({own["digest"] for name, own in results.items() if name.endswith(f" {records}")}) == 1
    rows = []
    for name, own in results.items():
        way, records = name.split()
        rate = int(records) / own["seconds"]
        peaks = [f"{own['peaks'].get(kind, 0):.0f}" for kind in KINDS]
        rows.append(
            [way, f"{int(records):,}", f"{rate:,.0f}", *peaks, *(micro(own, k, int(records)) for k in KINDS[:2])]
        )
    table(["by", "records", "records/s", *(f"{kind} MiB" for kind in KINDS), "packer us", "worker us"], rows)
    last_line("packing", {name: own["seconds"] for name, own in results.items()}, results=results)


def micro(own: dict[str, Any], kind: str, records: int) -> str:
    """Microseconds of processor time of a kind of process, a record or row."""
    return f"{own['cpu'].get(kind, 0.0) / records * 1e6:.1f}"


if __name__ == "__main__":
    main()
