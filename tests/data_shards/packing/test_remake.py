"""Data sets made from others: what packing would give, bit by bit; stopped and gone on; foreign and damaged places."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards import DatasetSchema, Manifest, ShardError, open_manifest, pack
from data_shards.errors import JobError, LeaseLostError
from data_shards.lease.lease import Lease
from data_shards.packing.remake import Made, remake
from data_shards.packing.rewrite import encode_columns
from data_shards.packing.shard_maker import Remade, ShardMaker, Task
from data_shards.records.arrays import load_tensors
from data_shards.records.decoder import Decoder
from data_shards.shards.lineage import Embedded, Lineage
from data_shards.shards.manifest import FILE
from data_shards.shards.reader import read_index
from data_shards.shards.storage import Storage
from tests.data_shards.build import ListSource, make_set
from tests.data_shards.packing.remade import MOMENTS, SCHEMA, Change, embedded, records, with_numbers

NAMES = ("notes", "scan", "title")
JOB = "a" * 64


def packed(folder: Path, schema: DatasetSchema = SCHEMA, **sizes: Any) -> Manifest:
    own = records(40, schema.has_moments)
    pack(ListSource(schema, own), str(folder), **{"chunk_records": 4, "shard_bytes": 12_000, **sizes})
    return open_manifest(str(folder))


def make(
    old: Manifest,
    out: Path,
    change: Change | None = None,
    backwards: bool = False,
    job: str = JOB,
    names: Sequence[str] = NAMES,
    **options: Any,
) -> tuple[Manifest, Made]:
    """The data set with vectors, by this process; `backwards` gives its shards from the last to the first."""
    schema = embedded(old.schema, names)

    def run(tasks: Sequence[Task]) -> Iterator[Remade]:
        maker = ShardMaker(old, schema, Storage(str(out)), change or Change(old.schema, names))
        return map(maker, reversed(tasks) if backwards else tasks)

    was = {name: old.schema.modalities[old.schema.numbers[name]] for name in names}
    lineage = Lineage(
        embedded={
            n: Embedded("e" * 64, "E", "pooled", "float32", None, None, own, old.digest) for n, own in was.items()
        }
    )
    return remake(old, str(out), schema, lineage, job, run, "embedding", **options)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("schema", [SCHEMA, MOMENTS], ids=["whole", "moments"])
def test_it_is_what_packing_the_vectors_gives(schema: DatasetSchema, tmp_path: Path) -> None:
    old = packed(tmp_path / "old", schema, shard_bytes=1 << 30)
    new, made = make(old, tmp_path / "new")
    own = [with_numbers(record, NAMES) for record in records(40, schema.has_moments)]
    pack(ListSource(embedded(schema, NAMES), own), str(tmp_path / "direct"), chunk_records=4, shard_bytes=1 << 30)
    direct = open_manifest(str(tmp_path / "direct"))
    # Tar, index and vocabulary are the same files; statistics differ in roundings, as they are added up by chunk.
    there, wanted = files(tmp_path / "new"), files(tmp_path / "direct")
    alike = [name for name in wanted if name.startswith(("shard-", "vocabulary-"))]
    assert len(alike) == 3 and all(there[name] == wanted[name] for name in alike)
    assert (new.columns, new.splits, new.records) == (direct.columns, direct.splits, direct.records)
    assert set(new.statistics) == {"default", "b"} and made.fresh == 1
    for split, found in new.statistics.items():
        for name, table in found.modalities.items():
            other = direct.statistics[split].modalities[name]
            assert (table.present, table.count, table.min, table.max) == (
                other.present, other.count, other.min, other.max
            )  # fmt: skip
            np.testing.assert_allclose([*table.mean, *table.std], [*other.mean, *other.std], rtol=1e-12, atol=1e-12)
            np.testing.assert_array_equal(table.quantiles, other.quantiles)
            assert (table.times and table.times.quantiles) == (other.times and other.times.quantiles)


def test_what_is_no_vector_stays_bit_by_bit(tmp_path: Path) -> None:
    old = packed(tmp_path / "old", MOMENTS)
    new, _ = make(old, tmp_path / "new", names=("notes",))
    assert len(old.shards) > 2
    assert [[chunk.records for chunk in shard.chunks] for shard in new.shards] == [
        [chunk.records for chunk in shard.chunks] for shard in old.shards
    ]
    assert (new.chunks.parts_KC == old.chunks.parts_KC).all() and (new.chunks.samples_KC == old.chunks.samples_KC).all()
    assert new.vocabularies == old.vocabularies and new.vocabulary("drugs") == old.vocabulary("drugs")
    assert old.lengths is not None and old.lineage == Lineage()
    assert new.source["lengths"] == {n: v for n, v in old.lengths.items() if n != "notes"}
    notes = sum(int(np.maximum(0, read_index(old, n).objects_nM[:, 1]).sum()) for n in range(len(old.shards)))
    assert new.source["notes"] == {**old.source["notes"], "made": notes} and notes > 20
    assert {**new.source, "lengths": 0, "notes": 0} == {**old.source, "lengths": 0, "notes": 0}
    for number in range(len(old.shards)):
        one, two = read_index(old, number), read_index(new, number)
        assert one.keys == two.keys
        for name in ("parts_nS", "moments_n", "targets_KW", "group_n", "times_K", "knots_X", "objects_nM"):
            assert np.array_equal(getattr(one, name), getattr(two, name), equal_nan=name == "targets_KW"), name
        for (_, before), (_, after) in zip(members(old, number), members(new, number), strict=True):
            arrays, about = load_tensors(before)
            changed, said = load_tensors(after)
            same = {n for n in arrays if not n.startswith(("text.", "vector."))}
            assert all(arrays[n].tobytes() == changed[n].tobytes() for n in same)
            assert {**said, "schema": ""} == {**about, "schema": ""}


def members(manifest: Manifest, number: int) -> list[tuple[str, bytes]]:
    index, data = read_index(manifest, number), manifest.storage.read(manifest.shards[number].name)
    rows = zip(index.keys, index.start_n.tolist(), index.size_n.tolist(), strict=True)
    return [(key, data[start : start + size]) for key, start, size in rows]


def test_columns_become_the_bytes_that_they_were(tmp_path: Path) -> None:
    seen = 0
    for old in (packed(tmp_path / "a"), packed(tmp_path / "b", MOMENTS), make_set(tmp_path / "c")):
        decoder = Decoder(old.schema)
        for number in range(len(old.shards)):
            for _, payload in members(old, number):
                assert encode_columns(decoder.columns(payload), old.schema, load_tensors(payload)[1]) == payload
                seen += 1
    assert seen == 140


def test_it_does_not_depend_on_who_made_what_nor_on_stops(tmp_path: Path) -> None:
    old = packed(tmp_path / "old")
    new, _ = make(old, tmp_path / "once")
    shards = len(new.shards)
    make(old, tmp_path / "backwards", backwards=True)
    with pytest.raises(KeyboardInterrupt):
        make(old, tmp_path / "stopped", Change(old.schema, NAMES, broken=2))
    left = sorted(name.split("-")[0] for name in files(tmp_path / "stopped"))
    assert left == ["done"] * 2 + ["shard"] * 4, "two complete shards, and no manifest"
    change = Change(old.schema, NAMES)
    told: list[int] = []
    again, made = make(old, tmp_path / "stopped", change, told=lambda remade: told.append(remade.number))
    assert (made.fresh, made.again, change.calls, told) == (shards - 2, 0, shards - 2, list(range(shards)))
    assert again.digest == new.digest
    assert files(tmp_path / "once") == files(tmp_path / "backwards") == files(tmp_path / "stopped")


def test_shards_from_other_processes_cannot_be_written_to_and_need_not(tmp_path: Path) -> None:
    old = packed(tmp_path / "old")
    schema = embedded(old.schema, NAMES)

    def run(tasks: Sequence[Task]) -> Iterator[Remade]:
        for remade in map(ShardMaker(old, schema, Storage(str(tmp_path / "far")), Change(old.schema, NAMES)), tasks):
            for accumulator in remade.statistics.values():
                frozen = [accumulator.present, *accumulator.class_counts]
                for distribution in accumulator.distributions:
                    frozen += [*vars(distribution.moments).values(), *vars(distribution.sketch).values()]
                for array in frozen:
                    if isinstance(array, np.ndarray):
                        array.flags.writeable = False
            yield remade

    far, _ = remake(old, str(tmp_path / "far"), schema, Lineage(), JOB, run, "embedding")
    near, _ = make(old, tmp_path / "near")
    assert far.statistics == near.statistics and far.sketches == near.sketches


def test_a_complete_shard_that_was_damaged_since_is_made_again(tmp_path: Path) -> None:
    old = packed(tmp_path / "old")
    new, _ = make(old, tmp_path / "once")
    for name, hurt in (("shard", -600), ("shard", None), ("index", 40), ("done", 5)):
        out = tmp_path / f"out-{name}{hurt}"
        with pytest.raises(KeyboardInterrupt):
            make(old, out, Change(old.schema, NAMES, broken=2))
        ending = {"shard": "shard-00001-*.tar", "index": "shard-00001-*.index", "done": "done-00001-*.json"}[name]
        (path,) = out.glob(ending)
        data = bytearray(path.read_bytes())
        if hurt is None:
            path.unlink()
        else:
            data[hurt] ^= 1
            path.write_bytes(data)
        _, made = make(old, out)
        # An entry that is none cannot be told from none at all.
        assert (made.fresh, made.again) == (len(new.shards) - 1, int(name != "done")), (name, hurt)
        assert files(out) == files(tmp_path / "once")


def test_the_beginning_of_another_job_is_no_place_to_go_on(tmp_path: Path) -> None:
    old = packed(tmp_path / "old")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        make(old, out, Change(old.schema, NAMES, broken=2), job="b" * 64)
    before = files(out)
    with pytest.raises(JobError, match=r"holds the beginning of another embedding, .* \(bbbbbbbbbbbb, this one is aaa"):
        make(old, out)
    assert files(out) == before
    # Others' entries count for nothing, and nothing of theirs is left.
    (entry,) = out.glob("done-00001-*.json")
    (out / "shard-00077-0123456789ab.tar").write_bytes(b"theirs")
    new, made = make(old, out, overwrite=True)
    assert entry.name not in files(out) and made.fresh == len(new.shards)
    make(old, tmp_path / "once")
    assert files(out) == files(tmp_path / "once")


def test_places_that_are_refused(tmp_path: Path) -> None:
    old = packed(tmp_path / "old")
    make(old, tmp_path / "new")
    with pytest.raises(ValueError, match="already holds a packed data set"):
        make(old, tmp_path / "new")
    with pytest.raises(ValueError, match="is the data set that is read"):
        make(old, tmp_path / "old", overwrite=True)
    before = files(tmp_path / "new")
    make(old, tmp_path / "new", overwrite=True)
    assert files(tmp_path / "new") == before


def test_a_damaged_original_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    old = packed(tmp_path / "old")
    path = tmp_path / "old" / old.shards[1].name
    data = bytearray(path.read_bytes())
    data[1500] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=rf"shard {old.shards[1].name}, chunk 0, bytes 0\.\.\d+: .*CRC-32"):
        make(old, tmp_path / "new")
    assert [name[:10] for name in files(tmp_path / "new") if name.startswith("done")] == ["done-00000"]


def test_lineage_says_what_it_was_and_other_data_say_nothing(tmp_path: Path) -> None:
    old = packed(tmp_path / "old")
    head = json.loads((tmp_path / "old" / FILE).read_bytes())
    assert head["lineage"] == {"number": 1, "parent": None}
    assert not {"encoder", "tokens"} & set(head["schema"]["modalities"][1])
    make(old, tmp_path / "new", names=("notes",))
    new = open_manifest(str(tmp_path / "new"))
    assert new.lineage is not None and list(new.lineage.embedded) == ["notes"]
    found = new.lineage.embedded["notes"]
    assert (found.was, found.of, found.digest) == (SCHEMA.modalities[1], old.digest, "e" * 64)
    spec = new.schema.modalities[1]
    assert (spec.kind, spec.timed, spec.max_objects, spec.horizon, spec.encoder) == ("vector", True, 3, 48.0, "e" * 64)


def test_whoever_has_lost_the_name_counts_no_further_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if another one had followed while the third shard was made."""
    old, asked = packed(tmp_path / "old"), []

    def confirm(lease: Lease) -> None:
        asked.append(lease.place)
        if len(asked) == 3:
            raise LeaseLostError("it belongs to another by now")

    monkeypatch.setattr(Lease, "confirm", confirm)
    with pytest.raises(LeaseLostError, match="it belongs to another by now"):
        make(old, tmp_path / "new")
    there = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert [name[:10] for name in there if name.startswith("done-")] == ["done-00000", "done-00001"]
    assert FILE not in there and len(old.shards) > 3
