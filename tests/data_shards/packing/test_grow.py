"""A data set that grows: appended in three steps as packed at once; versions stay readable; what is refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from data_shards import DatasetSchema, Manifest, Record, create_source, open_manifest, pack
from data_shards.crew import Here
from data_shards.errors import ManifestError, ShardError
from data_shards.packing.grow import refuse_unfit
from data_shards.packing.upkeep.copy import copy
from data_shards.packing.upkeep.drop import drop_version
from data_shards.shards.reader import read_index
from data_shards.shards.tables import load_sketches
from data_shards.shards.versions import files_of, head_name, versions_of
from data_shards.sources.base import Source
from tests.data_shards.build import SCHEMA, ListSource, make_record
from tests.data_shards.packing import remade

SIZES = {"chunk_records": 5, "shard_bytes": 20_000}
RECORDS = [make_record(i) for i in range(90)]


def grown(folder: Path, schema: DatasetSchema, records: list[Record], steps: list[int]) -> list[Manifest]:
    found = list[Manifest]()
    for number, (start, stop) in enumerate(zip([0, *steps], [*steps, len(records)], strict=True)):
        pack(ListSource(schema, records[start:stop]), str(folder), append=number > 0, **SIZES)  # type: ignore[arg-type]
        found.append(open_manifest(str(folder)))
    return found


def keys(manifest: Manifest) -> list[str]:
    return [key for number in range(len(manifest.shards)) for key in read_index(manifest, number).keys]


@pytest.mark.parametrize("kind", ["everything", "timed, with codes"])
def test_three_times_as_at_once(tmp_path: Path, kind: str) -> None:
    schema, records = (SCHEMA, RECORDS) if kind == "everything" else (remade.SCHEMA, remade.records(90))
    first, second, third = grown(tmp_path / "grown", schema, records, [40, 41])
    source = ListSource(schema, records)
    source.vocabularies = {name: first.vocabulary(name) for name in first.vocabularies}
    pack(source, str(tmp_path / "once"), **SIZES)  # type: ignore[arg-type]
    once = open_manifest(str(tmp_path / "once"))
    assert [m.records for m in (first, second, third)] == [40, 41, 90]
    assert [m.lineage.number for m in (first, second, third)] == [1, 2, 3]  # type: ignore[union-attr]
    assert second.lineage.parent == first.digest and third.lineage.parent == second.digest  # type: ignore[union-attr]
    assert [shard.name for shard in third.shards][: len(first.shards)] == [shard.name for shard in first.shards]
    assert keys(third) == keys(once) == [record.key for record in records]
    assert third.splits == once.splits and third.observations == once.observations
    assert third.lengths == once.lengths and third.source["notes"] == once.source["notes"]
    assert third.columns[: len(first.columns)] == first.columns
    assert third.statistics.keys() == once.statistics.keys()
    for split, wanted in once.statistics.items():
        found = third.statistics[split]
        assert found.records == wanted.records
        for name, modality in wanted.modalities.items():
            own = found.modalities[name]
            assert (own.present, own.count, own.min, own.max) == (
                modality.present, modality.count, modality.min, modality.max,
            )  # fmt: skip
            np.testing.assert_allclose([own.mean, own.std], [modality.mean, modality.std], rtol=1e-9, atol=1e-12)
            assert own.quantiles == modality.quantiles
            assert (own.times is None) == (modality.times is None) and (own.objects is None) == (
                modality.objects is None
            )
        for name, task in wanted.tasks.items():
            mine = found.tasks[name]
            assert (mine.labelled, mine.counts) == (task.labelled, task.counts)
            np.testing.assert_allclose([mine.mean, mine.std], [task.mean, task.std], rtol=1e-9)
            np.testing.assert_allclose(mine.quantiles, task.quantiles)
        for what, sketch in load_sketches(once)[split].items():
            columns = zip(load_sketches(third)[split][what].columns(), sketch.columns(), strict=True)
            assert all(np.array_equal(one, other) for one, other in columns)


def test_earlier_versions_are_there_by_their_digest(tmp_path: Path) -> None:
    first, second, third = grown(tmp_path, SCHEMA, RECORDS, [40, 41])
    found = versions_of(str(tmp_path))
    assert [(v.number, v.digest, v.parent, v.records) for v in found] == [
        (1, first.digest, None, 40), (2, second.digest, first.digest, 41), (3, third.digest, second.digest, 90),
    ]  # fmt: skip
    for version, manifest in zip(found, (first, second, third), strict=True):
        again = open_manifest(version.url)
        assert again.digest == manifest.digest and keys(again) == [record.key for record in RECORDS[: version.records]]
        assert again.statistics == manifest.statistics
    head = tmp_path / f"manifest-00001-{first.digest[:12]}.json"
    head.write_bytes(head.read_bytes().replace(b'"records":40', b'"records":41', 1))
    with pytest.raises(ManifestError, match=r"manifest-00001-.* has another SHA-256 than its name says"):
        open_manifest(found[0].url)


class Missing(ListSource):
    """Part names that no earlier record had."""

    def read(self, unit, notes: Counter[str]):  # type: ignore[no-untyped-def]
        for record in super().read(unit, notes):
            yield replace(record, splits={"later": "train", "default": "hidden"})


def test_new_splits_and_parts_come_at_the_end(tmp_path: Path) -> None:
    pack(ListSource(SCHEMA, RECORDS[:40]), str(tmp_path), **SIZES)  # type: ignore[arg-type]
    first = open_manifest(str(tmp_path))
    pack(Missing(SCHEMA, RECORDS[40:60]), str(tmp_path), append=True, **SIZES)  # type: ignore[arg-type]
    second = open_manifest(str(tmp_path))
    assert second.columns == (*first.columns, ("default", "hidden"), ("later", "train"))
    assert second.splits["default"] == first.splits["default"] | {"hidden": 20} and second.splits["later"] == {
        "train": 20
    }
    assert second.statistics["later"].records == 20
    assert second.statistics["default"].records == first.statistics["default"].records
    assert len(keys(second)) == 60 and keys(first) == keys(second)[:40]


def test_what_is_refused_leaves_everything_as_it_was(tmp_path: Path) -> None:
    pack(ListSource(SCHEMA, RECORDS[:40]), str(tmp_path), **SIZES)  # type: ignore[arg-type]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    labs, *rest = SCHEMA.modalities
    other = replace(SCHEMA, modalities=(replace(labs, horizon=24.0), *rest))
    fewer, tasks = replace(SCHEMA, modalities=tuple(rest)), replace(SCHEMA, tasks=SCHEMA.tasks[:1])
    for source, words in (
        (ListSource(SCHEMA, [*RECORDS[40:50], RECORDS[3]]), r"record key 'r00003' occurs twice \(shards 0 and \d\)"),
        (ListSource(other, RECORDS[40:]), r"modality labs of .* is horizon 48.0, in the source 24.0: what is appended"),
        (ListSource(fewer, RECORDS[40:]), "has, in this order, modality labs, note, .* and the source others"),
        (ListSource(tasks, RECORDS[40:]), "has, in this order, task death, ward, codes, stay, and the source others"),
    ):
        with pytest.raises(ValueError, match=words):
            pack(source, str(tmp_path), append=True, **SIZES)  # type: ignore[arg-type]
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ManifestError, match="is not a packed data set"):
        pack(ListSource(SCHEMA, RECORDS), str(tmp_path / "nothing"), append=True)
    with pytest.raises(ValueError, match="append to what is there, or overwrite it, not both"):
        pack(ListSource(SCHEMA, RECORDS), str(tmp_path), append=True, overwrite=True)


class Mapped(ListSource):
    """Says how it divides, as tables do."""

    split: ClassVar[dict[str, object]] = {"shares": {"test": 0.2, "train": 0.8}}

    def report(self, notes: Counter[str]) -> dict[str, object]:
        return super().report(notes) | {"mapping": {"split": self.split}}


def test_another_rule_for_splits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(Mapped(SCHEMA, RECORDS[:20]), str(tmp_path), **SIZES)  # type: ignore[arg-type]
    pack(Mapped(SCHEMA, RECORDS[20:30]), str(tmp_path), append=True, **SIZES)  # type: ignore[arg-type]
    for split, words in (
        (
            {"shares": {"train": 0.7, "test": 0.3}},
            r"split.shares \{'test': 0.2, 'train': 0.8\}, in the source it is .*0.7",
        ),
        (Mapped.split | {"seed": 3}, "divided by split.seed not given, in the source it is 3: new records of a group"),
        ({"columns": {"default": "part"}}, "split.shares .* in the source it is not given"),
    ):
        monkeypatch.setattr(Mapped, "split", split)
        with pytest.raises(ValueError, match=words):
            pack(Mapped(SCHEMA, RECORDS[30:]), str(tmp_path), append=True, **SIZES)  # type: ignore[arg-type]
    assert open_manifest(str(tmp_path)).records == 30


def test_the_order_of_shares_is_part_of_the_rule(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def tables(name: str, split: dict[str, object] | None, start: int) -> Source:
        rows = "".join(f"r{n},g{n // 2},{n}\n" for n in range(start, start + 40))
        (tmp_path / f"{name}.csv").write_text(f"key,group,x\n{rows}")
        records = {"file": f"{name}.csv", "key": "key", "group": "group"}
        mapping = {"name": "n", "records": records, "modalities": {"x": {"kind": "vector", "columns": ["x"]}}}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(mapping | ({"split": split} if split else {})))
        return create_source("tables", {"path": str(tmp_path / f"{name}.yaml")})

    turned, given = {"shares": {"test": 0.1, "val": 0.1, "train": 0.8}}, {"shares": {"train": 0.6, "test": 0.4}}
    folder = str(tmp_path / "set")
    pack(tables("first", None, 0), folder)
    words = r"by split.shares in the order \['train', 'val', 'test'\], in the source it is \['test', 'val', 'train'\]"
    with pytest.raises(ValueError, match=words):
        pack(tables("second", turned, 39), folder, append=True)
    with pytest.raises(ValueError, match=r"by split.shares not given, in the source it is {'train': 0.6, 'test': 0.4}"):
        pack(tables("third", given, 39), folder, append=True)
    pack(tables("fourth", None, 41), folder, append=True)
    manifest = open_manifest(folder)
    assert manifest.records == 80 and manifest.source["order_of_shares"] == ["train", "val", "test"]
    # A data set of before does not say it, and grows with a word of warning
    own = replace(manifest, source={k: v for k, v in manifest.source.items() if k != "order_of_shares"})
    refuse_unfit(own, tables("fifth", turned, 90))
    assert "does not say in which order split.shares stood" in caplog.text
    # Records that no mapping divides say their parts themselves
    refuse_unfit(manifest, ListSource(manifest.schema, []))


def test_a_dropped_version_takes_only_what_nobody_else_names(tmp_path: Path) -> None:
    first, second, third = grown(tmp_path, SCHEMA, RECORDS, [40, 41])
    before = {path.name for path in tmp_path.iterdir()}
    gone = drop_version(str(tmp_path), second.digest[:8])
    assert set(gone) == before - {path.name for path in tmp_path.iterdir()}
    own = {f"manifest-00002-{second.digest[:12]}.json", *(table.name for table in second.tables)}
    assert set(gone) == own and gone[0].startswith("manifest-00002")
    assert [version.number for version in versions_of(str(tmp_path))] == [1, 3]
    assert open_manifest(versions_of(str(tmp_path))[0].url).digest == first.digest
    assert keys(open_manifest(str(tmp_path))) == [record.key for record in RECORDS]
    with pytest.raises(ValueError, match=r"has no version '2', or several: its versions are 1 \([0-9a-f]{12}\), 3"):
        drop_version(str(tmp_path), "2")
    with pytest.raises(ValueError, match=r"version 3 of .* is the newest one, which stays"):
        drop_version(str(tmp_path), "3")
    assert third.digest == open_manifest(str(tmp_path)).digest


@pytest.mark.parametrize("version", [0, 2])
def test_a_copy_is_the_version_that_was_named(tmp_path: Path, version: int) -> None:
    manifests = grown(tmp_path / "grown", SCHEMA, RECORDS, [40, 41])
    place = versions_of(str(tmp_path / "grown"))[version].url
    report = copy(place, str(tmp_path / "copy"), Here())
    again = open_manifest(str(tmp_path / "copy"))
    assert report["digest"] == again.digest == manifests[version].digest and keys(again) == keys(manifests[version])
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {*files_of(manifests[version]), "manifest.json"}
    assert report["copied"] == sum(p.stat().st_size for p in (tmp_path / "copy").iterdir()) - again_head(tmp_path)


def test_a_copy_of_all_versions_is_the_same_files(tmp_path: Path) -> None:
    manifests = grown(tmp_path / "grown", SCHEMA, RECORDS, [40, 41])
    files = {path.name: path.read_bytes() for path in (tmp_path / "grown").iterdir()}
    report = copy(str(tmp_path / "grown"), str(tmp_path / "copy"), Here(), versions=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == files
    assert (report["versions"], report["files"], report["bytes"]) == (3, len(files), sum(map(len, files.values())))
    for version, manifest in zip(versions_of(str(tmp_path / "copy")), manifests, strict=True):
        assert version.digest == manifest.digest and keys(open_manifest(version.url)) == keys(manifest)
    # It grows on as the original does
    for folder in ("grown", "copy"):
        pack(ListSource(SCHEMA, [make_record(90)]), str(tmp_path / folder), append=True, **SIZES)  # type: ignore[arg-type]
    assert open_manifest(str(tmp_path / "copy")).digest == open_manifest(str(tmp_path / "grown")).digest
    # Of a version with those before it; in place of the whole, nothing of which is left over
    second = versions_of(str(tmp_path / "grown"))[1].url
    report = copy(second, str(tmp_path / "copy"), Here(), versions=True, overwrite=True)
    assert [version.digest for version in versions_of(report["url"])] == [own.digest for own in manifests[:2]]
    wanted = files_of(manifests[0]) | files_of(manifests[1]) | {"manifest.json", head_name(manifests[0])}
    assert {path.name for path in (tmp_path / "copy").iterdir()} == wanted
    assert report["copied"] == 0


def test_a_damaged_file_of_an_earlier_version_is_not_copied(tmp_path: Path) -> None:
    first, _, _ = grown(tmp_path / "grown", SCHEMA, RECORDS, [40, 41])
    only = max(files_of(first) - files_of(open_manifest(str(tmp_path / "grown"))))
    assert only.startswith("sketches-")
    (tmp_path / "grown" / only).write_bytes(b"x" + (tmp_path / "grown" / only).read_bytes()[1:])
    copy(str(tmp_path / "grown"), str(tmp_path / "newest"), Here())
    with pytest.raises(ShardError, match=f"{only}: has another SHA-256"):
        copy(str(tmp_path / "grown"), str(tmp_path / "copy"), Here(), versions=True)
    assert not (tmp_path / "copy" / "manifest.json").exists()


def again_head(folder: Path) -> int:
    return (folder / "copy" / "manifest.json").stat().st_size


def test_a_copy_goes_on_and_refuses_what_is_damaged(tmp_path: Path) -> None:
    (first,) = grown(tmp_path / "set", SCHEMA, RECORDS, [])
    shard = tmp_path / "set" / first.shards[2].name
    good = shard.read_bytes()
    shard.write_bytes(good[:-1] + b"x")
    with pytest.raises(ShardError, match=f"{shard.name}.*another SHA-256 than the manifest says: it is not copied"):
        copy(str(tmp_path / "set"), str(tmp_path / "copy"), Here())
    there = {path.name for path in (tmp_path / "copy").iterdir()}
    assert first.shards[1].name in there and not there & {shard.name, "manifest.json"}
    shard.write_bytes(good)
    damaged = tmp_path / "copy" / first.shards[0].name
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    report = copy(str(tmp_path / "set"), str(tmp_path / "copy"), Here())
    names = [damaged.name, *(n for own in first.shards[2:] for n in (own.name, own.index.name))]
    assert report["copied"] == sum((tmp_path / "copy" / name).stat().st_size for name in names)
    for path in (tmp_path / "set").iterdir():
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(ValueError, match="already holds a packed data set"):
        copy(str(tmp_path / "set"), str(tmp_path / "copy"), Here())
