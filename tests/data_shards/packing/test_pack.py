"""Packing: what is written, what a plain WebDataset reader makes of it, and that nothing half-written remains."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from data_shards import Manifest, Record, open_manifest, pack
from data_shards.records.arrays import load_tensors
from data_shards.records.decoder import Decoder
from data_shards.shards.manifest import FILE
from data_shards.shards.reader import read_index
from data_shards.shards.storage import Storage
from data_shards.shards.tar import ShardBuilder
from tests.data_shards.build import SCHEMA, ListSource, make_record, make_set, same_record

RECORDS = [make_record(i) for i in range(60)]


def test_report_and_manifest_agree(tmp_path: Path) -> None:
    report = pack(ListSource(SCHEMA, RECORDS), str(tmp_path / "set"), chunk_records=5, shard_bytes=20_000)
    manifest = open_manifest(str(tmp_path / "set"))
    events = sum(len(v) for r in RECORDS for name, v in r.values.items() if name in ("labs", "vitals"))  # type: ignore[arg-type]
    assert (report["records"], report["observations"]) == (60, events) == (manifest.records, manifest.observations)
    assert report["shards"] == len(manifest.shards) > 1
    assert report["digest"] == manifest.digest
    assert manifest.splits["default"] == {"train": 36, "val": 12, "test": 12}
    assert sum(manifest.splits["other"].values()) == 40  # every third record is in no part of that split
    assert manifest.source["notes"] == {"read": 60}
    on_disk = {path.name for path in (tmp_path / "set").iterdir()}
    assert on_disk == {*files_of(manifest), FILE}
    assert manifest.url.endswith("set") and open_manifest(str(tmp_path / "set" / FILE)).digest == manifest.digest


def files_of(manifest: Manifest) -> set[str]:
    """Names of the files that a manifest names, itself left out."""
    head = json.loads(manifest.storage.read(FILE))
    names = {entry["name"] for entry in (*head["tables"].values(), *head["vocabularies"].values())}
    return names | {shard.name for shard in manifest.shards} | {shard.index.name for shard in manifest.shards}


@pytest.mark.parametrize("workers", [1, 3])
def test_real_lengths_are_recorded_whoever_packs(tmp_path: Path, workers: int) -> None:
    report = pack(ListSource(SCHEMA, RECORDS), str(tmp_path / "set"), workers=workers)
    found: dict[str, list[int]] = {name: [0] for name in ("ecg", "labs", "note", "vitals")}
    for record in RECORDS:
        for name in found.keys() & record.values.keys():
            value = record.values[name]
            found[name].append(len(value.encode() if isinstance(value, str) else value))
    expected = {name: {"longest": max(own), "total": sum(own)} for name, own in found.items()}
    assert report["source"]["lengths"] == open_manifest(str(tmp_path / "set")).lengths == expected
    assert min(own["longest"] for own in expected.values()) > 0


def test_a_source_cannot_write_lengths_itself(tmp_path: Path) -> None:
    class Boaster(ListSource):
        def report(self, notes: Counter[str]) -> dict[str, Any]:
            return {"lengths": "very long"}

    with pytest.raises(ValueError, match="its report has an entry 'lengths', which pack writes itself"):
        pack(Boaster(SCHEMA, RECORDS), str(tmp_path / "set"))
    assert list((tmp_path / "set").glob("*")) == []


def test_plain_webdataset_reads_the_same_records(tmp_path: Path) -> None:
    manifest = make_set(tmp_path)
    urls = [str(tmp_path / shard.name) for shard in manifest.shards]
    dataset = webdataset.WebDataset(urls, shardshuffle=False)  # framing only: no .decode()
    decoder, samples = Decoder(SCHEMA), list(dataset)
    assert [sample["__key__"] for sample in samples] == [record.key for record in RECORDS]
    assert all(same_record(decoder.record(s["st"]), r) for s, r in zip(samples, RECORDS, strict=True))


def test_the_index_describes_every_record(tmp_path: Path) -> None:
    manifest, decoder, row = make_set(tmp_path), Decoder(SCHEMA), 0
    for number, shard in enumerate(manifest.shards):
        index = read_index(manifest, number)
        data = (tmp_path / shard.name).read_bytes()
        for i, key in enumerate(index.keys):
            columns = decoder.columns(data[index.start_n[i] : index.start_n[i] + index.size_n[i]], key)
            assert index.lengths_nM[i].tolist() == columns.lengths(SCHEMA).tolist()
            assert np.array_equal(index.targets_KW[i], columns.targets_W, equal_nan=True)
            pairs = {manifest.columns[c] for c in index.parts_nS[i].tolist() if c >= 0}
            assert pairs == set(RECORDS[row].splits.items())
            row += 1
    assert row == 60


def test_the_result_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    digests = {make_set(tmp_path / str(workers), workers=workers).digest for workers in (1, 2)}
    assert len(digests) == 1


def test_a_data_set_is_replaced_only_on_request(tmp_path: Path) -> None:
    first = make_set(tmp_path, 60)
    with pytest.raises(ValueError, match="already holds a packed data set"):
        make_set(tmp_path, 20)
    (tmp_path / "notes.txt").write_text("mine")
    second = make_set(tmp_path, 20, overwrite=True)
    assert second.records == 20 and first.digest != second.digest
    assert {path.name for path in tmp_path.iterdir()} == files_of(second) | {FILE, "notes.txt"}


def bad_record() -> Record:
    return Record("bad", {"static": np.array([0, np.nan, 0], "f4")}, {}, {"default": "train"})


@pytest.mark.parametrize(
    ("extra", "words", "workers"),
    [
        (bad_record(), "record bad, modality static: holds NaN", 1),
        (bad_record(), "record bad, modality static: holds NaN", 2),
        (RECORDS[3], "record key 'r00003' occurs twice", 1),
        (Record("r9", {}, {"ward": 5.0}), "label 5 is out of range", 1),
    ],
)
def test_a_bad_record_leaves_nothing_behind(tmp_path: Path, extra: Record, words: str, workers: int) -> None:
    source = ListSource(SCHEMA, [*RECORDS, extra])
    with pytest.raises(ValueError, match=words):
        pack(source, str(tmp_path), chunk_records=5, shard_bytes=20_000, workers=workers)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_keeps_the_old_data_set(tmp_path: Path) -> None:
    old = make_set(tmp_path)
    source = ListSource(SCHEMA, [*RECORDS, bad_record()])  # its first shards have the old ones' names and content
    with pytest.raises(ValueError, match="record bad"):
        pack(source, str(tmp_path), chunk_records=5, shard_bytes=20_000, overwrite=True)
    again = open_manifest(str(tmp_path))
    assert again.digest == old.digest
    assert all((tmp_path / shard.name).stat().st_size == shard.bytes for shard in again.shards)


def test_no_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gave no record"):
        pack(ListSource(SCHEMA, []), str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """The operating system refuses to let a file grow: the same path as a full disk, with the same cleaning up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, hard))
    try:
        with pytest.raises(OSError, match=r"packing into .* stopped, nothing was kept: .*File too large"):
            pack(ListSource(SCHEMA, RECORDS), str(tmp_path), chunk_records=5, shard_bytes=20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_fails_late_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Storage, name: str, data: bytes) -> None:
        assert name == FILE
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Storage, "create", failing)
    with pytest.raises(OSError, match="No space left on device"):
        pack(ListSource(SCHEMA, RECORDS), str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_sizes_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="chunk_records 0"):
        pack(ListSource(SCHEMA, RECORDS), str(tmp_path), chunk_records=0)


def test_chunks_obey_both_limits(tmp_path: Path) -> None:
    manifest = make_set(tmp_path, chunk_records=4, chunk_bytes=4000, shard_bytes=1 << 20)
    chunks = manifest.shards[0].chunks
    assert max(chunk.records for chunk in chunks) <= 4
    assert all(chunk.length <= 5000 or chunk.records == 1 for chunk in chunks)


def test_payloads_hold_no_pickle(tmp_path: Path) -> None:
    manifest = make_set(tmp_path)
    data = (tmp_path / manifest.shards[0].name).read_bytes()
    index = read_index(manifest, 0)
    for start, size in zip(index.start_n, index.size_n, strict=True):
        load_tensors(data[start : start + size])
    assert b"cnumpy" not in data and b"\x80\x04\x95" not in data


@pytest.mark.parametrize(
    ("chunk_records", "chunk_bytes", "shard_bytes", "unit", "shards", "chunks", "digest"),
    [(5, 8 << 20, 20_000, 7, 5, 15, "8fde48354e6aa874"), (500, 4_000, 9_000, 23, 11, 33, "ec26f1987860a3b1")],
)
def test_equal_records_give_the_bytes_that_they_always_gave(
    tmp_path: Path,
    chunk_records: int,
    chunk_bytes: int,
    shard_bytes: int,
    unit: int,
    shards: int,
    chunks: int,
    digest: str,
) -> None:
    """Of shards and indices, as one process wrote them that saw every record in turn."""
    sizes: dict[str, Any] = {"chunk_records": chunk_records, "chunk_bytes": chunk_bytes, "shard_bytes": shard_bytes}
    pack(ListSource(SCHEMA, RECORDS, unit), str(tmp_path), **sizes)
    manifest = open_manifest(str(tmp_path))
    assert (len(manifest.shards), len(manifest.chunks)) == (shards, chunks)
    all_digests = "".join(shard.sha256 + shard.index.sha256 for shard in manifest.shards)
    assert hashlib.sha256(all_digests.encode()).hexdigest()[:16] == digest


def test_a_shard_is_what_webdataset_writes() -> None:
    builder, wanted = ShardBuilder(), io.BytesIO()
    writer = webdataset.TarWriter(wanted, encoder=False, mtime=0)
    for size in (0, 1, 511, 512, 513, 30_000):
        builder.add(f"r-{size}", memoryview(bytes(size)))
        writer.write({"__key__": f"r-{size}", "st": bytes(size)})
    writer.close()
    assert builder.finish() == wanted.getvalue()
