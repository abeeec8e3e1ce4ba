"""Keys are compared exactly, with runs on disk of any size; equal hashes of different keys are no error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_shards.packing.units import keys as keys_module
from data_shards.packing.units.encoded import key_hashes
from data_shards.packing.units.keys import KeyCheck

SHARDS = [[f"r{n:04d}" for n in range(start, start + 50)] for start in range(0, 500, 50)]


def twice(shards: list[list[str]], run: int) -> tuple[tuple[str, int, int] | None, list[int]]:
    """What is found, and the shards whose keys were asked for."""
    asked = list[int]()

    def keys_of(shard: int) -> list[str]:
        asked.append(shard)
        return shards[shard]

    with KeyCheck(run) as check:
        for number, own in enumerate(shards):
            check.add(keys_module.key_hashes(own)[:20], number)
            check.add(keys_module.key_hashes(own)[20:], number)
        folder = Path(check._folder.name)
        found = check.twice(keys_of)
        assert len(list(folder.glob("*.run"))) == {1: 20, 7: 20, 64: 7, 1000: 1}[run]
    assert not folder.exists()
    return found, asked


@pytest.mark.parametrize("run", [1, 7, 64, 1000])
def test_one_that_occurs_twice_is_found_wherever_it_is(run):
    assert twice(SHARDS, run) == (None, [])
    apart = [list(own) for own in SHARDS]
    apart[8][30] = "r0003"
    assert twice(apart, run) == (("r0003", 0, 8), [0, 8])
    beside = [list(own) for own in SHARDS]
    beside[4][49] = beside[4][0]
    assert twice(beside, run) == (("r0200", 4, 4), [4])


def test_equal_hashes_of_different_keys_are_told_apart(monkeypatch):
    """Sixteen different hashes: every key collides with many, and only the one that is there twice is named."""

    def few(own: list[str]) -> np.ndarray:
        return key_hashes(own) & np.uint64(15)

    monkeypatch.setattr(keys_module, "key_hashes", few)
    assert twice(SHARDS, 64)[0] is None
    apart = [list(own) for own in SHARDS]
    apart[9][0] = "r0101"
    assert twice(apart, 64)[0] == ("r0101", 2, 9)


def test_hashes_are_those_of_any_program():
    assert key_hashes(["a"]).tolist() == [3405396810240292928]
