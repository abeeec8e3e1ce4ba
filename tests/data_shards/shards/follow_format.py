"""Reads a packed data set as docs/format.md says, with a tar, a JSON, a Parquet and an array library only."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

Arrays = dict[str, np.ndarray]
Table = dict[str, Any]
DTYPES = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U32": "<u4", "I16": "<i2", "I8": "|i1", "U8": "|u1"}


def arrays_of(data: bytes) -> tuple[Arrays, dict[str, str]]:
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata, body, end, found = header.pop("__metadata__"), data[8 + length :], 0, {}
    for name, entry in header.items():
        begin, stop = entry["data_offsets"]
        assert begin == end
        found[name] = np.frombuffer(body[begin:stop], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        end = stop
    assert end == len(body) and length % 8 == 0
    return found, metadata


def checked(folder: Path, entry: Table) -> bytes:
    data = (folder / entry["name"]).read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    return data


def table(folder: Path, entry: Table) -> list[Table]:
    rows = pq.read_table(io.BytesIO(checked(folder, entry))).to_pylist()
    assert (
        len(rows) == entry["rows"]
        and hashlib.sha256((folder / entry["name"]).read_bytes()).hexdigest()[:12] in entry["name"]
    )
    return rows


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def read(folder: Path) -> tuple[str, Table, list[Table]]:
    """(digest of the data set, its head, its records)."""
    text = (folder / "manifest.json").read_bytes()
    head = json.loads(text)
    assert (head["format"], head["version"], canonical(head)) == ("fleximoe-shards", 2, text)
    shards, chunks = table(folder, head["tables"]["shards"]), table(folder, head["tables"]["chunks"])
    names = {modality: codes_of(folder, head, modality) for modality in head["vocabularies"]}
    records: list[Table] = []
    for shard in shards:
        own, chunks = chunks[: shard["chunks"]], chunks[shard["chunks"] :]
        found = shard_records(folder, shard, own, head)
        records += [{**record, **values_of(record, head["schema"], names)} for record in found]
    assert not chunks and len(records) == head["records"]
    assert sum(record["samples"] for record in records) == head["samples"]
    for column, (split, part) in enumerate(head["columns"]):
        assert head["splits"][split][part] == sum(column in record["columns"] for record in records)
    return hashlib.sha256(text).hexdigest(), head, records


def codes_of(folder: Path, head: Table, modality: str) -> dict[int, str]:
    rows = table(folder, head["vocabularies"][modality])
    named, rare = ([row["code"] for row in rows if (row["id"] == 1) == own] for own in (False, True))
    (spec,) = (spec for spec in head["schema"]["modalities"] if spec["name"] == modality)
    digest = hashlib.sha256(json.dumps([named, rare], ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()
    assert (spec["codes"], spec["vocabulary"]) == (len(named) + 2, digest)
    assert [row["id"] for row in rows] == [*range(2, len(named) + 2), *[1] * len(rare)]
    return {0: "UNKNOWN", 1: "RARE"} | {row["id"]: row["code"] for row in rows if row["id"] > 1}


def shard_records(folder: Path, shard: Table, chunks: list[Table], head: Table) -> list[Table]:
    data = checked(folder, {**shard, "sha256": shard["sha256"].hex()})
    entry = {"name": shard["index_name"], "bytes": shard["index_bytes"], "sha256": shard["index_sha256"].hex()}
    index, about = arrays_of(checked(folder, entry))
    assert about == {"format": "fleximoe-index/2"}
    keys, found, sample = bytes(index["keys"]).decode("ascii").split("\n"), [], 0
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    assert [(m.name, m.offset_data, m.size) for m in members] == list(
        zip([f"{key}.st" for key in keys], index["start"].tolist(), index["size"].tolist(), strict=True)
    )
    end = row = 0
    for chunk in chunks:
        assert chunk["offset"] == end
        end += chunk["length"]
        assert zlib.crc32(data[chunk["offset"] : end]) == chunk["crc32"]
        rows = range(row, row + chunk["records"])
        assert all(chunk["offset"] < index["start"][r] < end for r in rows)
        for column in range(len(head["columns"])):
            inside = [r for r in rows if column in index["parts"][r]]
            assert chunk[f"part.{column}"] == len(inside)
            if "samples" in chunk:
                assert chunk[f"samples.{column}"] == sum(index["moments"][r] for r in inside)
        assert chunk.get("samples", chunk["records"]) == sum(index["moments"][r] for r in rows)
        row = rows.stop
    assert row == shard["records"] == len(keys)
    for r, key in enumerate(keys):
        payload = data[index["start"][r] : index["start"][r] + index["size"][r]]
        assert zlib.crc32(payload) == index["crc32"][r]
        arrays, metadata = arrays_of(payload)
        own, samples = index["parts"][r], int(index["moments"][r])
        splits = dict(head["columns"][c] for c in own.tolist() if c >= 0)
        schema = hashlib.sha256(canonical(head["schema"])).hexdigest()[:16]
        assert metadata.pop("format") == "fleximoe-record/2" and metadata.pop("schema") == schema
        group = metadata.pop("group", None)
        assert metadata == {"key": key} | {f"split.{split}": part for split, part in splits.items()}
        digest = hashlib.blake2b(group.encode(), digest_size=8).digest() if group else bytes(8)
        assert index["group"][r] == int.from_bytes(digest, "little", signed=True)
        targets = index["targets"][sample : sample + samples]
        found.append(
            {
                "key": key,
                "group": group,
                "splits": splits,
                "columns": own.tolist(),
                "samples": samples,
                "arrays": arrays,
                "targets": targets,
                "lengths": index["lengths"][r].tolist(),
                "objects": index["objects"][r].tolist(),
                "moments": arrays.get("moment.time", np.empty(0, "<f4")),
            }
        )
        own_targets = arrays.get("target", np.empty((samples, 0) if len(found[-1]["moments"]) else 0, "<f4"))
        assert np.array_equal(own_targets.reshape(samples, -1), targets, equal_nan=True)
        if "times" in index:
            found[-1]["times"] = index["times"][sample : sample + samples]
        sample += samples
    return found


def values_of(record: Table, schema: Table, names: dict[str, dict[int, str]]) -> Table:
    """Modality -> list of (time, value): events as (time, (channel, value)), codes as (time, (name, value))."""
    arrays, specs, found = record["arrays"], schema["modalities"], dict[str, list[tuple[float, Any]]]()

    def column(name: str, length: int = 0, fill: float = 0.0) -> list[Any]:
        return arrays[name].tolist() if name in arrays else [fill] * length

    place = 0
    for number, count in zip(column("series.modality"), column("series.count"), strict=True):
        cut = slice(place, place + count)
        rows = zip(column("series.channel")[cut], column("series.value")[cut], strict=True)
        found[specs[number]["name"]] = list(zip(column("series.time")[cut], rows, strict=True))
        place += count
    place, owners = 0, column("text.modality")
    for number, count, time in zip(owners, column("text.count"), column("text.time", len(owners)), strict=True):
        text = bytes(arrays["text.byte"][place : place + count]).decode() if count else ""
        found.setdefault(specs[number]["name"], []).append((time, text))
        place += count
    place, owners = 0, column("vector.modality")
    for number, time in zip(owners, column("vector.time", len(owners)), strict=True):
        size = specs[number]["shape"][0]
        found.setdefault(specs[number]["name"], []).append(
            (time, arrays["vector.value"][place : place + size].tolist())
        )
        place += size
    place, total = 0, len(column("codes.id"))
    times, values = column("codes.time", total), column("codes.value", total, float("nan"))
    for number, count in zip(column("codes.modality"), column("codes.count"), strict=True):
        cut = slice(place, place + count)
        name = specs[number]["name"]
        found[name] = [
            (time, (names[name][code], value))
            for time, code, value in zip(times[cut], column("codes.id")[cut], values[cut], strict=True)
        ]
        place += count
    for spec in specs:
        array = arrays.get(f"{spec['kind']}.{spec['name']}") if spec["kind"] in ("image", "waveform") else None
        if array is not None and not spec.get("timed"):
            found[spec["name"]] = [(0.0, array.tolist())]
        elif array is not None:
            counts = arrays[f"count.{spec['name']}"] if spec["kind"] == "waveform" else None
            pieces = list(array) if counts is None else np.split(array, np.cumsum(counts)[:-1])
            own = zip(arrays[f"time.{spec['name']}"].tolist(), [piece.tolist() for piece in pieces], strict=True)
            found[spec["name"]] = list(own)
    for number in column("empty"):
        found[specs[number]["name"]] = []
    return {"values": found}


def quantile_bucket(level: int, key: int) -> tuple[float, float]:
    """Smallest and largest value of a sketch's key."""

    def value(whole: int) -> float:
        bits = whole & 0x7FFFFFFF if whole & 0x80000000 else ~whole & 0xFFFFFFFF
        return float(struct.unpack("<f", struct.pack("<I", bits))[0])

    return value(key << level), value(((key + 1) << level) - 1)
