"""How fast do packed records become batches? Against reading the bytes, and against webdataset's default way.

    python -m benchmarks.loader [--quick]

ours        `StepLoader`: shuffled order, ranged reads, checksums, decoding, packing into batches of 64, one process
raw         the same shard files read to the end, 1 MiB at a time
webdataset  its default pipeline (`WebDataset(...).decode()`) on shards with one .npy member an array, no shuffling and
            no collation, for its default collation refuses ragged records with missing members

Ratios: `speedup-M` is ours over webdataset in samples/s at M modalities, `of-raw-M` ours over raw.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Step, arguments, last_line, table, take_turns
from data_shards import DatasetSchema, Record, Series, StepLoader, create_source, open_manifest, pack
from data_shards.config import DataConfig
from data_shards.sources.base import Source, SourceOptions

KINDS = {8: "series:4,vector:2,image:1,waveform:1", 32: "series:16,vector:8,image:4,waveform:4"}


class Held(Source):
    """Records that are in memory."""

    def __init__(self, schema: DatasetSchema, records: list[Record]) -> None:
        super().__init__(SourceOptions())
        self.schema, self._records = schema, records

    def units(self) -> list[int]:
        return [0]

    def read(self, unit: int, notes: Counter[str]) -> Iterator[Record]:
        yield from self._records


def npy_shard(path: Path, records: list[Record]) -> None:
    """The same records with one .npy member an array."""
    with tarfile.open(path, "w") as tar:
        for record in records:
            for name, array in _arrays(record).items():
                data = io.BytesIO()
                np.save(data, array)
                info = tarfile.TarInfo(f"{record.key}.{name}.npy")
                info.size = data.tell()
                data.seek(0)
                tar.addfile(info, data)


def _arrays(record: Record) -> dict[str, np.ndarray[Any, Any]]:
    arrays: dict[str, np.ndarray[Any, Any]] = {
        f"target_{name}": np.asarray(value, np.float32) for name, value in record.targets.items()
    }
    for name, value in record.values.items():
        if isinstance(value, Series):
            arrays |= {
                f"{name}_times": value.times_O,
                f"{name}_channels": value.channels_O,
                f"{name}_values": value.values_O,
            }
        elif isinstance(value, np.ndarray):
            arrays[name] = value
    return arrays


def prepare(folder: Path, modalities: int, number: int) -> tuple[dict[str, Step], int]:
    """Alternatives, each of which goes through all records once; and how many those are."""
    import webdataset

    source = create_source("synthetic", {"modalities": KINDS[modalities], "records": number})
    records = list(source.records())
    for record in records:
        record.splits["default"] = "train"
    npy_shard(folder / "npy.tar", records)
    pack(Held(source.schema, records), str(folder / "packed"))
    manifest = open_manifest(str(folder / "packed"))
    loader = StepLoader(manifest, DataConfig(url=manifest.url), "train", 64)
    shards = sorted((folder / "packed").glob("*.tar"))

    def ours() -> int:
        return sum(step.samples for step in loader.steps(0))

    def raw() -> int:
        size = 0
        for shard in shards:
            with shard.open("rb") as file:
                while block := file.read(1 << 20):
                    size += len(block)
        return size

    def theirs() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline = webdataset.WebDataset(str(folder / "npy.tar"), shardshuffle=False).decode()
            return sum(1 for _ in pipeline)

    assert ours() == theirs() == number
    return {"ours": ours, "raw": raw, "webdataset": theirs}, number


def main() -> None:
    chosen = arguments(__doc__)
    rounds = chosen.rounds or (3 if chosen.quick else 7)
    ratios: dict[str, float] = {}
    rows: list[list[object]] = []
    for modalities in KINDS:
        with tempfile.TemporaryDirectory() as name:
            steps, number = prepare(Path(name), modalities, 200 if chosen.quick else 2000)
            rates = {case: number / seconds for case, seconds in take_turns(steps, rounds).items()}
        rows += [[f"{modalities} modalities", case, rate, rate / rates["raw"]] for case, rate in rates.items()]
        ratios[f"speedup-{modalities}"] = rates["ours"] / rates["webdataset"]
        ratios[f"of-raw-{modalities}"] = rates["ours"] / rates["raw"]
    table(("data", "reader", "samples/s", "of raw"), rows)
    last_line("loader", ratios, batch=64, workers=0, rounds=rounds)


if __name__ == "__main__":
    main()
