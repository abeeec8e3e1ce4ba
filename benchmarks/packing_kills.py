"""Packing that is killed: the same command goes on, to the same digest, and leaves nothing that the manifest lacks.

    python -m benchmarks.packing_kills [--records 1000000] [--workers 2] [--work DIR]

Tiny records (`benchmarks.packing`) on a local Ray. A worker is killed when 40 % of the shards are there; then the
driver with its Ray; then first the one and later the other. The digest is compared with that of one process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import tempfile
import time
from multiprocessing.context import SpawnProcess
from pathlib import Path

import psutil

from benchmarks.packing import packed
from data_shards import open_manifest

KILLS: dict[str, dict[float, str]] = {
    "a worker": {0.4: "worker"},
    "the driver": {0.4: "driver"},
    "both": {0.3: "worker", 0.6: "driver"},
}


def begun(records: int, way: str, workers: int, folder: Path) -> SpawnProcess:
    """A pack in a process of its own."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=packed, args=(records, way, workers, str(folder)))
    process.start()
    return process


def killed(process: SpawnProcess, what: str) -> None:
    """Kill a worker at work, or the driver and all below it."""
    family = psutil.Process(process.pid).children(recursive=True)
    if what == "driver":
        process.kill()
        process.join()
        chosen = family
    else:
        chosen = [each for each in family if "ray::pack" in " ".join(each.cmdline())][:1]
        assert chosen, "a worker is at work"
    for each in chosen:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


def through(kills: dict[float, str], records: int, shards: int, workers: int, folder: Path) -> list[int]:
    """A pack with kills at shares of its shards, begun again where the driver is killed; shards there at each."""
    process, found = begun(records, "ray", workers, folder), list[int]()
    for share, what in kills.items():
        while len(list(folder.glob("set/shard-*.tar"))) < share * shards:
            assert process.is_alive(), "it works"
            time.sleep(0.05)
        killed(process, what)
        found.append(len(list(folder.glob("set/shard-*.tar"))))
        if what == "driver":
            assert not (folder / "set/manifest.json").exists()
            process = begun(records, "ray", workers, folder)
    process.join()
    assert process.exitcode == 0
    return found


def left_over(folder: Path) -> list[str]:
    """Files that the manifest does not name."""
    manifest = open_manifest(str(folder))
    head = json.loads((folder / "manifest.json").read_text())
    named = {"manifest.json", *(name for own in manifest.shards for name in (own.name, own.index.name))}
    named |= {own["name"] for own in head["tables"].values()}
    return sorted({path.name for path in folder.iterdir()} - named)


def main() -> None:
    """Kill, go on, compare and print."""
    from benchmarks.common import last_line, table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", default=None)
    chosen = parser.parse_args()
    rows, results = [], {}
    with tempfile.TemporaryDirectory(dir=chosen.work) as folder:
        alone = begun(chosen.records, "alone", 1, Path(folder))
        alone.join()
        once = json.loads(Path(folder, "report.json").read_text())
    for name, kills in KILLS.items():
        with tempfile.TemporaryDirectory(dir=chosen.work) as folder:
            at = through(kills, chosen.records, once["shards"], chosen.workers, Path(folder))
            report, left = json.loads(Path(folder, "report.json").read_text()), left_over(Path(folder, "set"))
            results[name] = {"same": report["digest"] == once["digest"], "left": left, "at": at} | {
                key: report[key] for key in ("shards", "shards_before")
            }
        own = results[name]
        rows.append([name, own["at"], own["shards_before"], own["shards"], own["same"], len(left)])
    table(["killed", "shards there", "kept", "of", "same digest", "left over"], [[*map(str, row)] for row in rows])
    last_line("packing_kills", {}, results=results)


if __name__ == "__main__":
    main()
