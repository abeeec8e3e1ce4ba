"""Tables in random order, more than memory holds, sorted out by record and packed: by one process and by several.

    python -m benchmarks.sorting [--rows 2000000] [--records 10000] [--files 8] [--ways alone processes] [--workers 2]

Rows of one series in long form (record, hours, channel, value), in Parquet files, each row of any record. Columns as in
`benchmarks.packing`; the digests must be equal. The first line says what the table has as files and in memory.
``--work`` is the folder for everything, ``--tables`` one whose tables stay; ``--keep`` as there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import yaml

from benchmarks.packing import KINDS, LOG_S, SHARD, crew_of, measured, micro
from data_shards import create_source, pack

CHANNELS = ("hr", "sbp", "dbp", "temp", "spo2")
GROUP = 1 << 18  # rows


def made(folder: Path, rows: int, records: int, files: int) -> tuple[Path, int, int]:
    """The mapping file, and bytes of the table as files and in memory; those of an earlier call if there are some."""
    rng, held, told = np.random.default_rng(0), 0, folder / "bytes.json"
    if told.exists():
        return (folder / "mapping.yaml", *json.loads(told.read_text()))
    keys = pa.array([f"s{number:08d}" for number in rng.permutation(records)])
    labels = pa.array(rng.integers(0, 2, records))
    pa.parquet.write_table(pa.table({"stay": keys, "died": labels}), folder / "stays.parquet")
    names = pa.array(CHANNELS)
    for number in range(files):
        with pa.parquet.ParquetWriter(folder / f"events-{number:03d}.parquet", _SCHEMA) as out:
            left = rows // files
            while left:
                count = min(left, GROUP)
                left -= count
                stay = keys.take(pa.array(rng.integers(0, records, count)))
                hours = pa.array(rng.integers(0, 48 * 60, count) / 60)
                value = pa.array(np.round(rng.normal(80, 20, count), 1))
                table = pa.table([stay, hours, names.take(pa.array(rng.integers(0, 5, count))), value], schema=_SCHEMA)
                held += table.nbytes
                out.write_table(table)
    series = {"kind": "series", "file": "events-*.parquet", "time": "hours", "horizon": 48.0}
    tree = {
        "name": "made",
        "records": {"file": "stays.parquet", "key": "stay"},
        "split": {"shares": {"train": 0.8, "val": 0.1, "test": 0.1}},
        "modalities": {"vitals": series | {"channel": "channel", "value": "value", "channels": list(CHANNELS)}},
        "tasks": {"died": {"kind": "binary", "column": "died"}},
    }
    (folder / "mapping.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    stored = sum(file.stat().st_size for file in folder.glob("events-*"))
    told.write_text(json.dumps([stored, held]))
    return folder / "mapping.yaml", stored, held


_SCHEMA = pa.schema([("stay", pa.string()), ("hours", pa.float64()), ("channel", pa.string()), ("value", pa.float64())])


def packed(mapping: str, way: str, workers: int, folder: str) -> None:
    """In a process of its own: pack, and leave the report."""
    with crew_of(way, workers) as crew:
        source = create_source("tables", {"path": mapping, "scratch": str(Path(mapping).parent)})
        report = pack(source, f"{folder}/set", crew=crew, shard_bytes=SHARD, log_s=LOG_S)
    Path(folder, "report.json").write_text(json.dumps(report))


def main() -> None:
    """Measure and print."""
    from benchmarks.common import last_line, table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ways", nargs="+", default=["alone", "processes"], choices=["alone", "processes", "ray"])
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--tables", type=Path, default=None, help="where tables are made once and stay")
    parser.add_argument("--keep", type=Path, default=None)
    chosen = parser.parse_args()
    results = json.loads(chosen.keep.read_text()) if chosen.keep and chosen.keep.exists() else {}
    with contextlib.ExitStack() as stack:
        folder = chosen.tables or stack.enter_context(tempfile.TemporaryDirectory(dir=chosen.work))
        mapping, stored, held = made(Path(folder), chosen.rows, chosen.records, chosen.files)
        print(f"{chosen.rows:,} rows of {chosen.records:,} records: {stored / 2**20:,.0f} MiB as files, "
              f"{held / 2**20:,.0f} MiB in memory", flush=True)  # fmt: skip
        for way in chosen.ways:
            results[way] = measured(packed, str(mapping), way, chosen.workers, chosen.work)
            if chosen.keep:
                chosen.keep.write_text(json.dumps(results))
    assert len({own["digest"] for own in results.values()}) == 1
    rows = []
    for way, own in results.items():
        peaks = [f"{own['peaks'].get(kind, 0):.0f}" for kind in KINDS]
        cost = [micro(own, kind, chosen.rows) for kind in KINDS[:2]]
        rows.append([way, f"{chosen.rows / own['seconds']:,.0f}", *peaks, *cost])
    table(["by", "rows/s", *(f"{kind} MiB" for kind in KINDS), "packer us/row", "worker us/row"], rows)
    last_line("sorting", {way: own["seconds"] for way, own in results.items()}, results=results)


if __name__ == "__main__":
    main()
