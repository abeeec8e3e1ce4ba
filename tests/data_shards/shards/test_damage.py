"""Damaged shards: every kind is found and named with its place; with ``skip`` every loss is counted.

A data set of 20 records in 4 chunks; the damage sits at record 10, the first of chunk 2. Plain tar readers deliver most
of these damages as a shorter archive, without an error.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_shards import DataConfig, Manifest, ShardError, StepLoader, open_manifest
from data_shards.records.codec import encode_record
from data_shards.shards.index import dump_index
from data_shards.shards.reader import read_index
from tests.data_shards.build import SCHEMA, make_record, make_set
from tests.data_shards.forge import edit_table, reseal

RECORDS, CHUNK, AT = 20, 5, 10


def packed(folder: Path) -> tuple[Manifest, Path, list[int], list[int]]:
    """(manifest, path of its only shard, payload starts, payload sizes)."""
    manifest = make_set(folder, RECORDS, chunk_records=CHUNK, shard_bytes=1 << 24)
    index = read_index(manifest, 0)
    return manifest, folder / manifest.shards[0].name, index.start_n.tolist(), index.size_n.tolist()


def deliver(folder: Path, **fields: object) -> tuple[list[str], Counter[str]]:
    """Keys that one epoch over the parts of split ``default`` delivers, and what was skipped."""
    manifest, keys, skipped = open_manifest(str(folder)), list[str](), Counter[str]()
    for part in ("train", "val", "test"):
        loader = StepLoader(manifest, DataConfig(url=str(folder), window_chunks=2, **fields), part, 4)  # type: ignore[arg-type]
        for step in loader.steps(0):
            keys += step.micro_batches[0].keys
            skipped += Counter(step.skipped)
        assert loader.skipped.total() + sum(key in keys for key in part_keys(part)) == loader.samples
    return keys, skipped


def part_keys(part: str) -> set[str]:
    return {f"r{i:05d}" for i in range(RECORDS) if make_record(i).splits["default"] == part}


def flip(data: bytearray, place: int, bit: int = 0xFF) -> bytes:
    data[place] ^= bit
    return bytes(data)


def fix_header(header: bytes) -> bytes:
    """The header with a right checksum."""
    plain = header[:148] + b" " * 8 + header[156:]
    return plain[:148] + f"{sum(plain):06o}\0 ".encode() + plain[156:]


def with_header(data: bytes, at: int, change: Callable[[bytearray], None]) -> bytes:
    header = bytearray(data[at : at + 512])
    change(header)
    return data[:at] + fix_header(bytes(header)) + data[at + 512 :]


def put(place: int, text: bytes) -> Callable[[bytearray], None]:
    return lambda header: header.__setitem__(slice(place, place + len(text)), text)


# name -> (change of the shard's bytes given payload start and size of record 10, words of the error, records lost)
DAMAGES: dict[str, tuple[Callable[[bytes, int, int], bytes], str, int]] = {
    "cut inside a payload": (lambda d, a, n: d[: a + 9], "cut short: .*got", 10),
    "cut between members": (lambda d, a, n: d[: a - 512], "cut short: .*got 0 bytes", 10),
    "cut inside a header": (lambda d, a, n: d[: a - 400], "cut short: .*got 112 bytes", 10),
    "header checksum": (lambda d, a, n: flip(bytearray(d), a - 512 + 150), "tar header", 0),
    "header zeroed": (lambda d, a, n: d[: a - 512] + bytes(512) + d[a:], "an empty tar header at 0", 0),
    "payload bit": (lambda d, a, n: flip(bytearray(d), a + n - 1, 1), "CRC-32", 1),
    "record header": (lambda d, a, n: flip(bytearray(d), a + 2), "CRC-32", 1),
    "empty file": (lambda d, a, n: b"", "cut short", 20),
    "not a tar": (lambda d, a, n: (b"<html>" * len(d))[: len(d)], "a damaged tar header at 0", 20),
    "compressed": (lambda d, a, n: gzip.compress(d) + bytes(len(d)), "tar header at 0", 20),
    "record removed": (
        lambda d, a, n: d[: a - 512] + d[a + (n + 511) // 512 * 512 :] + bytes(1 << 16),
        "where the index",
        10,
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_with_its_place(tmp_path: Path, name: str) -> None:
    change, words, _ = DAMAGES[name]
    manifest, path, starts, sizes = packed(tmp_path)
    path.write_bytes(change(path.read_bytes(), starts[AT], sizes[AT]))
    with pytest.raises(ShardError, match=words) as caught:
        deliver(tmp_path)
    error = caught.value
    assert error.shard == path.name in str(error)
    assert error.chunk is not None and error.start is not None and error.end is not None
    chunk = manifest.shards[0].chunks[error.chunk]
    assert chunk.offset <= error.start < error.end <= chunk.offset + chunk.length
    assert f"bytes {error.start}..{error.end}" in str(error)


@pytest.mark.parametrize("name", DAMAGES)
def test_skipping_counts_every_loss(tmp_path: Path, name: str) -> None:
    """Delivered and skipped add up to the manifest (asserted in ``deliver``), nothing is delivered twice."""
    change, _, lost = DAMAGES[name]
    _, path, starts, sizes = packed(tmp_path)
    path.write_bytes(change(path.read_bytes(), starts[AT], sizes[AT]))
    keys, skipped = deliver(tmp_path, on_error="skip", max_skipped=RECORDS)
    assert len(keys) == len(set(keys)) == RECORDS - lost
    assert skipped.total() == lost


def test_missing_shard(tmp_path: Path) -> None:
    _, path, _, _ = packed(tmp_path)
    path.unlink()
    with pytest.raises(ShardError, match=r"chunk .*cannot be read: .*No such file") as caught:
        deliver(tmp_path)
    assert caught.value.reason == "unreadable"
    keys, skipped = deliver(tmp_path, on_error="skip", max_skipped=RECORDS)
    assert keys == [] and skipped == {"unreadable": RECORDS}


def test_skipping_stops_at_its_limit(tmp_path: Path) -> None:
    _, path, starts, _ = packed(tmp_path)
    path.write_bytes(path.read_bytes()[: starts[AT] - 512])  # 6 of the 12 train records are gone
    with pytest.raises(ShardError, match=r"on this rank \d records skipped \(\d truncated\), data.max_skipped is 3"):
        deliver(tmp_path, on_error="skip", max_skipped=3)


@pytest.mark.parametrize("change", ["cut", "flip", "missing"])
def test_a_damaged_index_is_named(tmp_path: Path, change: str) -> None:
    manifest, _, _, _ = packed(tmp_path)
    path = tmp_path / manifest.shards[0].index.name
    data = path.read_bytes()
    path.unlink()
    if change != "missing":
        path.write_bytes(data[:-7] if change == "cut" else flip(bytearray(data), 300))
    with pytest.raises(ShardError, match=f"shard {re.escape(path.name)}: the index") as caught:
        deliver(tmp_path)
    assert caught.value.reason == {"cut": "truncated", "flip": "checksum", "missing": "unreadable"}[change]
    keys, skipped = deliver(tmp_path, on_error="skip", max_skipped=RECORDS)
    assert keys == [] and skipped.total() == RECORDS


def payload_of(record_10: bytes, size: int) -> bytes:
    """Pad or cut to the stored size, so that only the content is wrong."""
    return (record_10 + bytes(size))[:size]


HUGE = (112).to_bytes(
    8, "little"
) + b'{"x":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'.ljust(112)

# A careful forger: checksums of the manifest agree with the changed shard.
FORGERIES: dict[str, tuple[Callable[[bytes, int, int], bytes], str]] = {
    "symlink": (lambda d, a, n: with_header(d, a - 512, put(156, b"2")), "is not a plain file"),
    "hard link": (lambda d, a, n: with_header(d, a - 512, put(156, b"1")), "is not a plain file"),
    "device": (lambda d, a, n: with_header(d, a - 512, put(156, b"3")), "is not a plain file"),
    "long-name header": (lambda d, a, n: with_header(d, a - 512, put(156, b"L")), "is not a plain file"),
    "extended header": (lambda d, a, n: with_header(d, a - 512, put(156, b"x")), "is not a plain file"),
    "absolute path": (lambda d, a, n: with_header(d, a - 512, put(0, b"/etc/x.st\0")), "member name '/etc/x.st'"),
    "parent path": (lambda d, a, n: with_header(d, a - 512, put(0, b"../x.st\0")), "member name '../x.st'"),
    "prefix path": (lambda d, a, n: with_header(d, a - 512, put(345, b"/etc\0")), "is not a plain file"),
    "dotted key": (lambda d, a, n: with_header(d, a - 512, put(0, b"r0.5.st\0")), "member name 'r0.5.st'"),
    "no extension": (lambda d, a, n: with_header(d, a - 512, put(0, b"r00010\0")), "member name 'r00010'"),
    "pickle member": (lambda d, a, n: with_header(d, a - 512, put(0, b"r00010.pkl\0")), "member name 'r00010.pkl'"),
    "gz member": (lambda d, a, n: with_header(d, a - 512, put(0, b"r00010.gz\0")), "member name 'r00010.gz'"),
    "another key": (lambda d, a, n: with_header(d, a - 512, put(0, b"r00011.st\0")), "where the index has r00010.st"),
    "claims 1 TB": (lambda d, a, n: with_header(d, a - 512, put(124, b"20000000000000"[:11] + b"\0")), "claims"),
    "base-256 size": (lambda d, a, n: with_header(d, a - 512, put(124, b"\x80" + b"\xff" * 11)), "damaged tar header"),
    "record claims 4 TB": (
        lambda d, a, n: d[:a] + payload_of(HUGE, n) + d[a + n :],
        "record r00010: ",
    ),
    "gzip bomb": (lambda d, a, n: d[:a] + payload_of(gzip.compress(bytes(50 << 20)), n) + d[a + n :], "header of"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_shards_are_refused_without_taking_memory(tmp_path: Path, name: str) -> None:
    change, words = FORGERIES[name]
    _, path, starts, sizes = packed(tmp_path)
    path.write_bytes(change(path.read_bytes(), starts[AT], sizes[AT]))
    reseal(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(ShardError, match=words) as caught:
            deliver(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.shard == path.name and caught.value.chunk == AT // CHUNK
    keys, skipped = deliver(tmp_path, on_error="skip", max_skipped=RECORDS)
    assert len(keys) + skipped.total() == RECORDS


def rebuilt(folder: Path, order: list[int]) -> None:
    """A well-formed tar with the records in another order or number, in place of the shard."""
    manifest, path, _, _ = packed(folder)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i in order:
            payload = encode_record(make_record(i), SCHEMA)
            info = tarfile.TarInfo(f"r{i:05d}.st")
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    path.write_bytes((buffer.getvalue() + bytes(1 << 16))[: max(manifest.shards[0].bytes, 1)])
    reseal(folder)


@pytest.mark.parametrize("order", [[*range(10), 10, *range(10, 20)], [*range(10), 11, 10, *range(12, 20)]])
def test_duplicated_or_swapped_members_are_found(tmp_path: Path, order: list[int]) -> None:
    rebuilt(tmp_path, order)
    with pytest.raises(ShardError, match=r"where the index has|holds more|an empty tar header|claims"):
        deliver(tmp_path)


def test_the_index_must_lie_inside_its_chunks(tmp_path: Path) -> None:
    manifest, _, _, _ = packed(tmp_path)
    index = read_index(manifest, 0)
    index.start_n = index.start_n + np.where(np.arange(RECORDS) == AT, 1 << 40, 0)
    data = dump_index(index)
    (tmp_path / manifest.shards[0].index.name).write_bytes(data)
    digest = hashlib.sha256(data).digest()
    edit_table(tmp_path, "shards", lambda rows: rows[0].update(index_bytes=len(data), index_sha256=digest))
    with pytest.raises(ShardError, match="a record lies outside its chunk"):
        deliver(tmp_path)


def test_a_good_data_set_delivers_everything(tmp_path: Path) -> None:
    packed(tmp_path)
    keys, skipped = deliver(tmp_path)
    assert sorted(keys) == [f"r{i:05d}" for i in range(RECORDS)] and not skipped
