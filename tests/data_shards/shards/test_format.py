"""docs/format.md says enough to read a data set without this program, and says what the program writes."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from data_shards import Codes, DatasetSchema, Objects, Record, Series, open_manifest, pack
from data_shards.records.check import MAX_CODE_BYTES
from data_shards.records.decoder import Decoder
from data_shards.records.distributions.sketch import PROBABILITIES
from data_shards.records.vocabulary import VocabularyRule
from data_shards.shards import head, manifest, opening, tables
from data_shards.shards.contents import chunks
from tests.data_shards.build import SCHEMA, ListSource, make_record
from tests.data_shards.records.test_objects import HOURLY, PLAIN, record_of
from tests.data_shards.shards import follow_format

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "format.md").read_text("utf-8")


class CodesSource(ListSource):
    vocabulary_rules = {"drugs": VocabularyRule(min_count=18), "history": VocabularyRule(max_codes=9)}  # noqa: RUF012


def unnumbered(schema: DatasetSchema) -> DatasetSchema:
    """Codes without a vocabulary yet."""
    specs = [replace(spec, codes=0, vocabulary="") if spec.kind == "codes" else spec for spec in schema.modalities]
    return replace(schema, modalities=tuple(specs))


def records_for(schema: DatasetSchema) -> list[Record]:
    if schema is SCHEMA:
        return [make_record(i) for i in range(60)]
    rng, records = np.random.default_rng(5), list[Record]()
    for i in range(70):
        record = record_of(rng, schema, f"r{i:03d}")
        record.splits = {"a": ("train", "val")[i % 3 == 0]} | ({"b": "train" if i % 2 else "test"} if i > 30 else {})
        record.group = f"patient {i // 2}" if i % 5 else None
        records.append(record)
    return records


def pack_all(schema: DatasetSchema, folder: Path) -> list[Record]:
    records = records_for(schema)
    source = ListSource if schema is SCHEMA else CodesSource
    pack(source(unnumbered(schema), records), str(folder), chunk_records=5, shard_bytes=30_000)
    return records


def plain(value: Any, names: Counter[str], rare: Counter[str]) -> list[tuple[float, Any]]:
    """A packed value as `follow_format.values_of` gives it back."""
    if isinstance(value, Series):
        rows = zip(value.channels_O.tolist(), value.times_O.tolist(), value.values_O.tolist(), strict=True)
        return [(time, (channel, own)) for channel, time, own in sorted(rows, key=lambda row: row[:2])]
    if isinstance(value, Codes):
        known = [code if code in names else "RARE" if code in rare else "UNKNOWN" for code in value.codes]
        times = [0.0] * len(known) if value.times_O is None else value.times_O.tolist()
        values = [np.nan] * len(known) if value.values_O is None else value.values_O.tolist()
        return [(time, (code, own)) for time, code, own in zip(times, known, values, strict=True)]
    if isinstance(value, Objects):
        order = np.argsort(value.times_N, kind="stable").tolist()
        own = [v if isinstance(v := value.values[i], str) else v.tolist() for i in order]
        return list(zip(value.times_N[order].tolist(), own, strict=True))
    return [(0.0, value if isinstance(value, str) else value.tolist())]


@pytest.mark.parametrize("schema", [SCHEMA, PLAIN, HOURLY], ids=lambda schema: schema.name)
def test_a_data_set_is_read_by_the_document_alone(tmp_path: Path, schema: DatasetSchema) -> None:
    packed = pack_all(schema, tmp_path)
    digest, table, found = follow_format.read(tmp_path)
    assert digest == open_manifest(str(tmp_path)).digest
    assert [record["key"] for record in found] == [record.key for record in packed]
    codes = {name: open_manifest(str(tmp_path)).vocabulary(name) for name in table["vocabularies"]}
    if codes:
        assert codes["drugs"].rare and len(codes["history"].names) == 9 and table["samples"] >= table["records"]
    for record, own in zip(packed, found, strict=True):
        assert (own["splits"], own["group"]) == (record.splits, record.group)
        assert own["values"].keys() == record.values.keys()
        moments = np.empty(0) if record.moments is None else record.moments
        assert np.array_equal(own["moments"], moments) and own["samples"] == max(1, len(moments))
        for number, spec in enumerate(schema.modalities):
            value = record.values.get(spec.name)
            if value is None:
                assert own["lengths"][number] == own["objects"][number] == -1
                continue
            vocabulary = codes.get(spec.name)
            known = (Counter(vocabulary.names), Counter(vocabulary.rare)) if vocabulary else (Counter(), Counter())
            wanted, got = plain(value, *known), own["values"][spec.name]
            same_order = sorted(map(repr, wanted)) == sorted(map(repr, got)) if vocabulary else wanted == got
            assert same_order, spec.name
            assert own["objects"][number] == (len(value) if isinstance(value, Objects) else 1)
        for i, task in enumerate(schema.tasks):
            start, end = schema.target_offsets[i : i + 2]
            label = record.targets.get(task.name)
            wanted_KW = np.full((own["samples"], end - start), np.nan) if label is None else np.asarray(label, "f4")
            rows_KW = np.broadcast_to(wanted_KW.reshape(-1, end - start), (own["samples"], end - start))
            assert np.array_equal(own["targets"][:, start:end], rows_KW, equal_nan=True), task.name


@pytest.mark.parametrize("schema", [PLAIN, HOURLY], ids=lambda schema: schema.name)
def test_sketches_are_what_the_document_says(tmp_path: Path, schema: DatasetSchema) -> None:
    packed = pack_all(schema, tmp_path)
    _, table, _ = follow_format.read(tmp_path)
    rows = follow_format.table(tmp_path, table["tables"]["sketches"])
    assert rows == sorted(rows, key=lambda row: [row[name] for name in ("split", "of", "channel", "key")])
    for split, name in enumerate(sorted(table["statistics"])):
        train = [record for record in packed if record.splits.get(name) == "train"]
        labs = [own for record in train if isinstance(own := record.values.get("labs"), Series)]
        notes = [own for record in train if isinstance(own := record.values.get("notes"), Objects)]
        number = schema.numbers["notes"]
        wanted = {
            (0, 1): np.concatenate([own.values_O[own.channels_O == 1] for own in labs]),
            (1, number): np.concatenate([own.times_N for own in notes]),
            (2, number): np.array([len(own) for own in notes], np.float32),
        }
        for (of, channel), values in wanted.items():
            own = [row for row in rows if (row["split"], row["of"], row["channel"]) == (split, of, channel)]
            buckets = [follow_format.quantile_bucket(row["level"], row["key"]) for row in own]
            inside = [int(((values >= low) & (values <= high)).sum()) for low, high in buckets]
            assert inside == [row["count"] for row in own] and sum(inside) == len(values) > 0
        quantiles = table["statistics"][name]["modalities"]["labs"]["quantiles"][1]
        assert quantiles == pytest.approx(np.quantile(wanted[0, 1].astype(np.float64), PROBABILITIES), rel=1e-9)


def test_who_follows_the_document_imports_nothing_of_ours() -> None:
    tree = ast.parse(Path(follow_format.__file__).read_text("utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    own = {"__future__", "hashlib", "io", "json", "struct", "tarfile", "zlib", "pathlib", "typing"}
    assert modules == own | {"numpy", "pyarrow.parquet"}


def test_plain_webdataset_reads_the_shards(tmp_path: Path) -> None:
    packed = pack_all(HOURLY, tmp_path)
    opened = open_manifest(str(tmp_path))
    urls = [str(tmp_path / shard.name) for shard in opened.shards]
    assert len(urls) > 1
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))  # framing only: no .decode()
    assert [sample["__key__"] for sample in samples] == [record.key for record in packed]
    decoder = Decoder(opened.schema)
    assert all(decoder.columns(sample["st"]).key == sample["__key__"] for sample in samples)


def documented(section: str) -> dict[str, str]:
    """Column -> type of the table below a heading."""
    body = TEXT.split(f"\n### {section}\n")[1].split("\n#")[0]
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]+?) \|", body, re.MULTILINE))


def test_the_document_has_the_columns_that_are_written(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    pack_all(HOURLY, tmp_path)
    found = open_manifest(str(tmp_path))
    files = {path.name.split("-")[0]: pq.read_schema(path) for path in tmp_path.glob("*.parquet")}
    for what, section in {"shards": "Shards", "sketches": "Sketches", "vocabulary": "Vocabularies"}.items():
        assert documented(section) == {f.name: str(f.type) for f in files[what]}, what
    columns = [str(n) for n in range(len(found.columns))]
    wanted = {}
    for name, kind in documented("Chunks").items():
        wanted |= {name.replace("<n>", n): kind for n in (columns if "<n>" in name else [""])}
    assert wanted == {field.name: str(field.type) for field in files["chunks"]}


def test_the_document_has_the_limits_that_are_checked() -> None:
    limits = [opening.MAX_BYTES, manifest.MAX_TABLE_BYTES, *tables.MAX_ROWS.values(), chunks.MAX_CHUNK_BYTES]
    for number in (*limits, 1 << 33, 1 << 28, 1 << 20):
        assert f"{number:,}" in TEXT, number
    assert f"1 to {MAX_CODE_BYTES} bytes" in TEXT
    below = ", ".join(f"{p:g}".removeprefix("0") or "0" for p in PROBABILITIES[:17])
    assert f"probabilities {below} and one minus those" in TEXT
    keys = set(re.findall(r"`(\w+)`", TEXT.split("\n## Head\n")[1].split("\n### ")[0]))
    assert {field.name for field in fields(head.Head)} <= keys
