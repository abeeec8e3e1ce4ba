"""Every damage of docs/data_integrity.md is found, with the records that are gone; nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_shards import open_manifest
from data_shards.crew import Here
from data_shards.inspection.verify import VERIFY, Damage, Finding, Verifier, damaged_tables, verify
from data_shards.shards.reader import read_index
from tests.data_shards.build import make_set
from tests.data_shards.shards.test_damage import AT, DAMAGES, RECORDS, flip, packed


def found_in(folder: Path, deep: bool, before: dict[int, Finding] | None = None) -> list[Finding]:
    manifest = open_manifest(str(folder))
    with Here().team({VERIFY: Verifier(str(folder), manifest.digest, deep)}) as team:
        return verify(manifest, team, before or {})


def damages(folder: Path, deep: bool = True) -> list[Damage]:
    return [damage for finding in found_in(folder, deep) for damage in finding.damages]


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_is_found_with_what_is_lost(tmp_path: Path, name: str) -> None:
    change, _, lost = DAMAGES[name]
    manifest, path, starts, sizes = packed(tmp_path)
    keys = read_index(manifest, 0).keys
    path.write_bytes(change(path.read_bytes(), starts[AT], sizes[AT]))
    found = damages(tmp_path)
    assert found and {damage.file for damage in found} == {path.name}
    assert sum(damage.records for damage in found) == lost
    gone = [key for damage in found for key in damage.keys]
    assert gone == {0: [], 1: keys[AT : AT + 1], 10: keys[AT:], 20: keys}[lost]
    if len(path.read_bytes()) == manifest.shards[0].bytes:
        assert damages(tmp_path, deep=False) == []
        if lost < RECORDS:
            assert [damage.chunk for damage in found] == [2] + [3] * (name == "record removed")
    else:
        assert [damage.file for damage in damages(tmp_path, deep=False)] == [path.name]


def test_a_whole_data_set_and_one_that_lacks_files(tmp_path: Path) -> None:
    manifest = make_set(tmp_path)
    sizes = [(shard.index.bytes, shard.index.bytes + shard.bytes) for shard in manifest.shards]
    for deep in (False, True):
        findings = found_in(tmp_path, deep)
        assert [(f.shard, f.damages, f.bytes) for f in findings] == [(n, (), own[deep]) for n, own in enumerate(sizes)]
    first, second, third, fourth, _ = manifest.shards
    (tmp_path / first.name).unlink()
    (tmp_path / second.index.name).unlink()
    index = tmp_path / third.index.name
    index.write_bytes(flip(bytearray(index.read_bytes()), 100))
    shard = tmp_path / fourth.name
    shard.write_bytes(flip(bytearray(shard.read_bytes()), -1))  # behind the last record
    found = {damage.file: damage for damage in damages(tmp_path)}
    assert {name: damage.records for name, damage in found.items()} == {
        first.name: first.records, second.index.name: second.records, third.index.name: third.records, fourth.name: 0,
    }  # fmt: skip
    assert "cannot be read" in found[first.name].what and "cannot be read" in found[second.index.name].what
    assert "another SHA-256" in found[third.index.name].what and "another SHA-256" in found[fourth.name].what
    assert len(damages(tmp_path, deep=False)) == 3
    sketches = tmp_path / manifest.tables[2].name
    sketches.write_bytes(sketches.read_bytes()[:-1])
    assert [damage.file for damage in damaged_tables(manifest)] == [sketches.name]


def test_what_was_looked_at_is_not_looked_at_again(tmp_path: Path) -> None:
    make_set(tmp_path)
    all_of_them = found_in(tmp_path, True)
    told = Finding(1, (Damage("x.tar", 2, "odd", 3, ("a", "b")),), 7)
    assert Finding.of_table(told.as_table()) == told
    assert found_in(tmp_path, True, {1: told}) == [all_of_them[0], told, *all_of_them[2:]]
