"""Chunks checked some at a time, and tables unpacked some rows at a time, against all of it at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from data_shards import parquet
from data_shards.errors import TableError
from data_shards.parquet import dump_table, load_table
from data_shards.shards.contents import chunks as module
from data_shards.shards.contents.chunks import ChunkTable

COUNTS = np.array([3, 0, 5, 1, 0, 4])  # chunks of each shard


def made(samples: bool) -> tuple[ChunkTable, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    length_K = rng.integers(100, 200, 13, dtype=np.int32)
    shard_K = np.repeat(np.arange(6), COUNTS)
    start_K = np.concatenate([length_K[shard_K == s].cumsum() - length_K[shard_K == s] for s in range(6)])
    records_K = rng.integers(4, 9, 13, dtype=np.int32)
    parts_KC = np.stack([records_K - 1, np.ones(13, np.int32)], 1)
    more = (parts_KC * 2, records_K.astype(np.int64) * 2) if samples else None
    table = ChunkTable.of(COUNTS, start_K, length_K, records_K, np.zeros(13, np.uint32), parts_KC, more)
    return table, *(np.bincount(shard_K, own_K, 6).astype(int) for own_K in (length_K, records_K))


def slow(table: ChunkTable, bytes_S: np.ndarray, records_S: np.ndarray) -> int | None:
    """The first chunk that is wrong, as the rules are written, or -1 - shard."""
    for shard in range(6):
        end, records = 0, 0
        for k in range(*table.cut(shard).indices(13)):
            own = table.chunk(k)
            fine = own.offset == end and own.length >= 1 and own.records >= 1 and own.length <= 1 << 30
            fine &= all(0 <= part <= own.records for part in own.parts) and own.total_samples >= own.records
            more = own.total_samples - own.records
            fine &= all(0 <= s - p <= more for s, p in zip(own.samples, own.parts, strict=True))
            if not fine:
                return k
            end, records = own.offset + own.length, records + own.records
        if end > bytes_S[shard] or records != records_S[shard]:
            return -1 - shard
    return None


FAULTS: dict[str, Callable[[np.ndarray, int], None]] = {
    "offset_K": lambda own, k: own.__setitem__(k, own[k] + 1),
    "length_K": lambda own, k: own.__setitem__(k, own[k] + 1 if k % 2 else (0, (1 << 30) + 1)[k % 4 // 2]),
    "records_K": lambda own, k: own.__setitem__(k, 0),
    "parts_KC": lambda own, k: own.__setitem__((k, 1), -1),
    "samples_KC": lambda own, k: own.__setitem__((k, 0), 99),
    "total_K": lambda own, k: own.__setitem__(k, 1),
}


@pytest.mark.parametrize("block", [1, 2, 3, 5, 1 << 16])
def test_every_fault_is_found_wherever_blocks_end(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    for samples in (False, True):
        table, bytes_S, records_S = made(samples)
        assert table.problem(bytes_S, records_S) is None is slow(table, bytes_S, records_S)
        for name, hurt in FAULTS.items():
            if name in ("samples_KC", "total_K") and not samples:
                continue
            for k in range(13):
                own = getattr(table, name).copy()
                hurt(own, k)
                changed = {name: own}
                if not samples and name in ("parts_KC", "records_K"):
                    changed["samples_KC" if name == "parts_KC" else "total_K"] = own
                wrong = replace(table, **changed)
                expected, found = slow(wrong, bytes_S, records_S), wrong.problem(bytes_S, records_S)
                assert found is not None and expected is not None, (name, k)
                if expected >= 0:
                    place = wrong.place(expected)
                    # A chunk that is too long contradicts the next one's beginning, too: either may be named.
                    assert found[0] == place[0] and int(found[1].split(":")[0][6:]) - place[1] in (0, 1), (
                        name,
                        k,
                        found,
                    )
                else:
                    assert found[0] == -1 - expected
        for shard in np.flatnonzero(COUNTS).tolist():
            assert table.problem(bytes_S - (np.arange(6) == shard), records_S)[0] == shard  # type: ignore[index]
            assert table.problem(bytes_S, records_S + (np.arange(6) == shard))[0] == shard  # type: ignore[index]
        assert table.problem(bytes_S, records_S + (np.arange(6) == 4))[0] == 4, "of a shard without chunks"  # type: ignore[index]


TYPES = {"name": "string", "sha256": "sha256", "count": "int32", "sum": "int64"}


def test_tables_of_several_groups_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    columns = {
        "name": [f"n{i}" for i in range(23)],
        "sha256": [rng.bytes(32).hex() for _ in range(23)],
        "count": rng.integers(0, 9, 23, dtype=np.int32),
        "sum": rng.integers(0, 1 << 60, 23),
    }
    monkeypatch.setattr(parquet, "_ROW_GROUP", 7)
    data, beside = dump_table(columns, TYPES), np.zeros((23, 2), np.int64, order="F")
    found = load_table(data, TYPES, 23, {"sum": beside[:, 1]})
    for name, values in columns.items():
        np.testing.assert_array_equal(found[name], values)
    np.testing.assert_array_equal(beside[:, 1], columns["sum"])
    assert not beside[:, 0].any()
    with pytest.raises(TableError, match="it has 23 rows, not 24"):
        load_table(data, TYPES, 24)
