"""The manifest: what is refused when it is opened, in one sentence each, and what an opened one answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_shards import Manifest, ManifestError, open_manifest
from data_shards.records.decoder import Decoder
from data_shards.records.statistics import DISTRIBUTIONS, TRAIN, Accumulator
from data_shards.shards.manifest import FILE
from data_shards.shards.reader import read_index
from data_shards.shards.tables import load_sketches
from tests.data_shards.build import SCHEMA, make_record, make_set
from tests.data_shards.forge import Rows, edit_head, edit_table, replace_table, table_path


def refused(folder: Path, words: str) -> None:
    with pytest.raises(ManifestError, match=words) as caught:
        open_manifest(str(folder))
    assert str(folder) in str(caught.value)


# --- the head


def test_another_version_is_named(tmp_path: Path) -> None:
    make_set(tmp_path)
    edit_head(tmp_path, version=3, something="new")
    refused(tmp_path, r"\('fleximoe-shards', 3\); this program reads 'fleximoe-shards' of the versions 1 to 2")
    edit_head(tmp_path, version=True)
    refused(tmp_path, r"\('fleximoe-shards', True\)")
    edit_head(tmp_path, version=2, format="other-shards")
    refused(tmp_path, r"\('other-shards', 2\)")


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "is not JSON"), ("[1]", "is list"), ("{}", "None, None"), ("{" * 100_000, "is not JSON")],
)
def test_text_that_is_no_manifest(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / FILE).write_text(text)
    refused(tmp_path, words)


def test_a_missing_or_cut_manifest(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "is not a packed data set")
    make_set(tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-100])
    refused(tmp_path, "is not JSON")


def test_unknown_entries_are_damage(tmp_path: Path) -> None:
    make_set(tmp_path)
    edit_head(tmp_path, extra=1)
    refused(tmp_path, "is damaged at extra")


def test_totals_must_add_up(tmp_path: Path) -> None:
    make_set(tmp_path)
    edit_head(tmp_path, records=61)
    refused(tmp_path, "61 records, but the shards hold another number")
    edit_head(tmp_path, records=60, samples=61)
    refused(tmp_path, "61 samples, but the chunks hold another number")
    rewrite = {"default": {"train": 1, "val": 12, "test": 12}, "other": {"train": 20, "test": 20}}
    edit_head(tmp_path, samples=60, splits=rewrite)
    refused(tmp_path, "split 'default' part 'train' does not add up to 36")


def test_the_digest_is_that_of_the_head(tmp_path: Path) -> None:
    manifest = make_set(tmp_path)
    text = (tmp_path / FILE).read_bytes()
    assert manifest.digest == hashlib.sha256(text).hexdigest() == open_manifest(str(tmp_path)).digest
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")).encode()
    assert (manifest.version, manifest.lineage.number, manifest.lineage.parent) == (2, 1, None)  # type: ignore[union-attr]


# --- tables


@pytest.mark.parametrize("what", ["shards", "chunks"])
def test_damaged_tables(tmp_path: Path, what: str) -> None:
    make_set(tmp_path)
    path = table_path(tmp_path, what)
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    refused(tmp_path, f"table {path.name} is cut short: .*got {len(data) - 1} bytes of the {len(data)}")
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    refused(tmp_path, f"table {path.name} has another SHA-256 than {FILE} says")
    path.unlink()
    refused(tmp_path, f"table {path.name} cannot be read")
    replace_table(tmp_path, what, b"PAR1 not at all PAR1")
    refused(tmp_path, f"table {path.name}: it is no Parquet file that can be read")


def test_damaged_sketches_are_found_when_they_are_used(tmp_path: Path) -> None:
    manifest = make_set(tmp_path)
    path = table_path(tmp_path, "sketches")
    path.write_bytes(path.read_bytes()[:-1])
    assert open_manifest(str(tmp_path)).digest == manifest.digest
    with pytest.raises(ManifestError, match=f"table {path.name} is cut short"):
        load_sketches(manifest)


@pytest.mark.parametrize("name", ["../secret.tar", "/etc/passwd", "a/b.tar", "https://x/y.tar", "a..b", ""])
@pytest.mark.parametrize("column", ["name", "index_name"])
def test_file_names_must_stay_in_the_folder(tmp_path: Path, name: str, column: str) -> None:
    make_set(tmp_path)
    edit_table(tmp_path, "shards", lambda rows: rows[0].update({column: name}))
    refused(tmp_path, "leaves the data set's folder")


@pytest.mark.parametrize("what", ["shards", "chunks", "sketches"])
def test_names_and_sizes_of_tables_are_checked_before_they_are_read(tmp_path: Path, what: str) -> None:
    make_set(tmp_path)
    tables = json.loads((tmp_path / FILE).read_text())["tables"]
    edit_head(tmp_path, tables={**tables, what: {**tables[what], "name": "../x.parquet"}})
    refused(tmp_path, "leaves the data set's folder")
    if what != "sketches":
        edit_head(tmp_path, tables={**tables, what: {**tables[what], "bytes": 1 << 40}})
        refused(tmp_path, "claims 1099511627776 bytes, the limit is")
        edit_head(tmp_path, tables={**tables, what: {**tables[what], "rows": 1 << 40}})
        refused(tmp_path, "claims 1099511627776 rows, the limit is")
        edit_head(tmp_path, tables={**tables, what: {**tables[what], "rows": tables[what]["rows"] + 1}})
        refused(tmp_path, f"it has {tables[what]['rows']} rows, not {tables[what]['rows'] + 1}")


def first(**fields: object) -> Callable[[Rows], object]:
    return lambda rows: rows[0].update(fields)


@pytest.mark.parametrize(
    ("what", "change", "words"),
    [
        ("chunks", lambda rows: rows[-1].update(length=(1 << 30) + 1), ": 1073741825 bytes, the limit is 1073741824"),
        ("chunks", first(length=0), "chunk 0: bytes 0\\+0, expected to start at 0 and to hold records"),
        ("chunks", first(offset=-5), "chunk 0: bytes -5\\+[0-9]+, expected to start at 0"),
        ("chunks", first(records=0), "chunk 0: .* and to hold records"),
        ("chunks", lambda rows: rows[1].update(offset=rows[1]["offset"] + 512), "chunk 1: bytes .* expected to start"),
        ("chunks", first(**{"part.0": 6}), "chunk 0: counts per part .* do not fit 5 records"),
        ("chunks", first(**{"part.0": -1}), "chunk 0: counts per part"),
        ("chunks", lambda rows: rows.pop(), r"counts [0-9]+ chunks, table chunks-.* has [0-9]+"),
        ("shards", first(bytes=100), "shard shard-00000-.*, its chunks do not fit its 100 bytes"),
        ("shards", first(records=1), "its chunks do not fit its [0-9]+ bytes and 1 records"),
        ("shards", first(chunks=-1), "counts -?[0-9]+ chunks"),
        ("shards", first(index_bytes=1 << 40), "index of shard .* claims 1099511627776 bytes"),
    ],
)
def test_contradictory_rows(tmp_path: Path, what: str, change: Callable[[Rows], object], words: str) -> None:
    make_set(tmp_path)
    edit_table(tmp_path, what, change)
    refused(tmp_path, words)


def test_other_columns(tmp_path: Path) -> None:
    make_set(tmp_path)
    columns = ("offset", "length", "records", "crc32", "part.0")
    schema = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in columns])
    edit_table(tmp_path, "chunks", lambda rows: None, schema)
    refused(tmp_path, "its columns are offset int64, .* part.0 int64, not offset int64, .* part.0 int32")


# --- what an opened one answers


def test_counts_and_places_of_chunks(tmp_path: Path) -> None:
    manifest, row = make_set(tmp_path), 0
    records = [make_record(i) for i in range(60)]
    places = []
    for number, shard in enumerate(manifest.shards):
        for c, chunk in enumerate(shard.chunks):
            own = records[row : row + chunk.records]
            for column, (split, part) in enumerate(manifest.columns):
                assert chunk.parts[column] == sum(r.splits.get(split) == part for r in own) == chunk.samples[column]
            places.append([number, c, row])
            row += chunk.records
            assert chunk.total_samples == chunk.records == len(own)
        assert shard.chunks[-1] == list(shard.chunks)[-1] and list(shard.chunks[1:]) == list(shard.chunks)[1:]
    found = [[*manifest.chunks.place(k), int(manifest.chunks.start_K[k])] for k in range(len(manifest.chunks))]
    assert row == 60 and found == places
    assert manifest.largest_chunk == max(chunk.length for shard in manifest.shards for chunk in shard.chunks)
    assert manifest.counts("default", None).sum() == 60 and manifest.counts("default", "val").sum() == 12
    with pytest.raises(IndexError):
        _ = manifest.shards[0].chunks[99]


def test_unknown_splits_and_parts_list_what_there_is(tmp_path: Path) -> None:
    manifest = make_set(tmp_path)
    with pytest.raises(ValueError, match="it has default, other"):
        manifest.counts("third", "train")
    with pytest.raises(ValueError, match=r"no part 'dev'; it has test \(12\), train \(36\), val \(12\)"):
        manifest.counts("default", "dev")


def train_columns(manifest: Manifest, split: str) -> Accumulator:
    """Statistics of the training records as they are stored, all at once."""
    decoder, accumulator, found = Decoder(SCHEMA), Accumulator(SCHEMA), []
    for number, shard in enumerate(manifest.shards):
        index, data = read_index(manifest, number), manifest.storage.read(shard.name)
        for row in np.flatnonzero(index.members(manifest.column(split, TRAIN))).tolist():
            start = int(index.start_n[row])
            found.append(decoder.columns(data[start : start + int(index.size_n[row])]))
    accumulator.add(found)
    return accumulator


def test_sketches_are_kept_and_join(tmp_path: Path) -> None:
    manifest = make_set(tmp_path)
    found = load_sketches(manifest)
    assert sorted(found) == ["default", "other"]
    for split, sketches in found.items():
        expected = train_columns(manifest, split)
        for name, distribution in zip(DISTRIBUTIONS, expected.distributions, strict=True):
            for own, wanted in zip(sketches[name].columns(), distribution.sketch.columns(), strict=True):
                assert np.array_equal(own, wanted)
        quantiles = sketches["value"].quantiles(*expected.values.moments.bounds)
        labs = manifest.statistics[split].modalities["labs"].quantiles
        assert np.array_equal(quantiles[:3], labs)
