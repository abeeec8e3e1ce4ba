"""Timed objects and moments when packing: the newest are kept, what is left out is counted, samples are counted."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from data_shards import (
    DatasetSchema,
    Manifest,
    ManifestError,
    ModalitySpec,
    Objects,
    Record,
    ShardError,
    TaskSpec,
    open_manifest,
    pack,
)
from data_shards.records.decoder import Decoder
from data_shards.shards.manifest import FILE
from data_shards.shards.reader import read_index
from tests.data_shards.build import ListSource
from tests.data_shards.forge import Rows, edit_head, edit_table, table_path

NOTES = ModalitySpec("notes", "text", timed=True, max_objects=2, time_unit="hours", horizon=48.0)
PLAIN = DatasetSchema("notes", (NOTES,), (TaskSpec("y", "binary"),))
HOURLY = DatasetSchema("notes", (NOTES,), (TaskSpec("y", "binary", timed=True, time_unit="hours"),))


def notes(*times: float) -> Objects:
    return Objects(np.array(times, np.float32), [f"note {i}" for i in range(len(times))])


def texts(manifest: Manifest) -> dict[str, list[tuple[float, str]]]:
    decoder, found = Decoder(manifest.schema), {}
    for number, shard in enumerate(manifest.shards):
        index, data = read_index(manifest, number), manifest.storage.read(shard.name)
        for start, size, key in zip(index.start_n.tolist(), index.size_n.tolist(), index.keys, strict=True):
            own = decoder.record(data[start : start + size]).values["notes"]
            assert isinstance(own, Objects)
            found[key] = list(zip(own.times_N.tolist(), own.values, strict=True))
    return found  # type: ignore[return-value]


def test_the_newest_objects_are_kept_and_the_others_counted(tmp_path: Path) -> None:
    records = [
        Record("a", {"notes": notes(9, 1, 5, 9)}, {}, {"default": "train"}),
        Record("b", {"notes": notes(3, 2)}, {}, {"default": "train"}),
        Record("c", {"notes": notes(3, 3, 3)}, {}, {"default": "test"}),
    ]
    pack(ListSource(PLAIN, records), str(tmp_path))
    manifest = open_manifest(str(tmp_path))
    assert texts(manifest) == {
        "a": [(9.0, "note 0"), (9.0, "note 3")],
        "b": [(2.0, "note 1"), (3.0, "note 0")],
        "c": [(3.0, "note 1"), (3.0, "note 2")],
    }
    found = manifest.source["notes"]
    assert (found["older_objects_left_out.notes"], found["records_with_more_than_2_objects.notes"]) == (3, 2)
    assert manifest.statistics["default"].modalities["notes"].objects.mean == 2.0  # type: ignore[union-attr]
    index = read_index(manifest, 0)
    assert index.objects_nM.tolist() == [[2], [2], [2]]


def hourly() -> list[Record]:
    """Records of 1, 2, 3, 1, 2, 3, ... moments in three parts; the last one of a split of its own."""
    records = []
    for i in range(20):
        moments = np.arange(1, i % 3 + 2, dtype=np.float32)
        values = {"notes": notes(*range(i % 5))}
        splits = {"default": ("train", "val", "test")[i % 4 % 3]} if i % 5 else {}
        records.append(Record(f"r{i:02d}", values, {"y": np.zeros(len(moments))}, splits, moments=moments))
    records[7] = replace(records[7], moments=None, targets={})
    return records


def test_with_moments_all_objects_are_kept_and_samples_are_counted(tmp_path: Path) -> None:
    records = hourly()
    report = pack(ListSource(HOURLY, records), str(tmp_path), chunk_records=3, shard_bytes=8_000)
    manifest = open_manifest(str(tmp_path))
    samples = [1 if record.moments is None else len(record.moments) for record in records]
    assert report["samples"] == sum(samples) == manifest.counts("default", None).sum() > report["records"] == 20
    assert texts(manifest)["r04"] == [(float(i), f"note {i}") for i in range(4)]
    assert "older_objects_left_out.notes" not in manifest.source["notes"]
    assert len(manifest.shards) > 1
    row = 0
    for chunk in (chunk for shard in manifest.shards for chunk in shard.chunks):
        own = range(row, row + chunk.records)
        assert chunk.total_samples == sum(samples[i] for i in own)
        for column, (_, part) in enumerate(manifest.columns):
            rows = [i for i in own if records[i].splits.get("default") == part]
            assert (chunk.parts[column], chunk.samples[column]) == (len(rows), sum(samples[i] for i in rows))
        row += chunk.records
    parts = {part: [i for i, r in enumerate(records) if r.splits.get("default") == part] for part in ("train", "val")}
    for part, rows in parts.items():
        assert manifest.counts("default", part).sum() == sum(samples[i] for i in rows)
        assert manifest.splits["default"][part] == len(rows)


def test_samples_must_fit_their_records(tmp_path: Path) -> None:
    pack(ListSource(HOURLY, hourly()), str(tmp_path), chunk_records=3)
    head = (tmp_path / FILE).read_bytes()
    rows = table_path(tmp_path, "chunks").read_bytes()
    for changes in ({"samples": 2}, {"samples.0": -1}, {"samples.0": 99}):
        (tmp_path / FILE).write_bytes(head)
        table_path(tmp_path, "chunks").write_bytes(rows)
        edit_table(tmp_path, "chunks", partial(update, changes))
        with pytest.raises(ManifestError, match=r"chunk 1: samples .* do not fit 3 records"):
            open_manifest(str(tmp_path))


def test_samples_of_records_in_no_part_must_fit_too(tmp_path: Path) -> None:
    records = [replace(record, splits={}) for record in hourly()]
    pack(ListSource(HOURLY, records), str(tmp_path), chunk_records=3)
    edit_table(tmp_path, "chunks", partial(update, {"samples": 2}))
    with pytest.raises(ManifestError, match=r"chunk 1: samples \(\) of 2 do not fit 3 records"):
        open_manifest(str(tmp_path))


@pytest.mark.parametrize("more", [{"samples": 1}, {"samples": 1, "samples.0": 1}])
def test_an_index_whose_samples_are_others_than_the_manifest_says_is_refused(
    tmp_path: Path, more: dict[str, int]
) -> None:
    pack(ListSource(HOURLY, hourly()), str(tmp_path), chunk_records=3)
    manifest = open_manifest(str(tmp_path))
    chunk = manifest.shards[0].chunks[1]
    own = {"samples": chunk.total_samples, "samples.0": chunk.samples[0]}
    forged = {name: own[name] + added for name, added in more.items()}
    edit_table(tmp_path, "chunks", partial(update, forged))
    edit_head(tmp_path, samples=int(manifest.counts("default", None).sum()) + 1)
    with pytest.raises(ShardError, match="chunk 1: counts per part differ from the manifest"):
        read_index(open_manifest(str(tmp_path)), 0)


def update(changes: dict[str, int], rows: Rows) -> None:
    rows[1].update(changes)
