"""Rows sorted out by record: those of every unit, in the records' order and of one record in the table's."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from data_shards.crew import Crew, Here, Processes
from data_shards.sources.readers import spill
from data_shards.sources.readers.spill import Sorting, sort_out
from data_shards.sources.readers.table_files import batches, stretches

RECORDS, UNIT = 230, 7
KEYS = pa.array([f"k{n:03d}" for n in np.random.default_rng(3).permutation(RECORDS)])


def written(folder: Path, rows: int, files: int) -> list[Path]:
    """A table in random order, in Parquet files of several row groups; of every ninth record there is nothing."""
    rng, made = np.random.default_rng(0), list[Path]()
    for number, own in enumerate(np.array_split(np.arange(rows), files)):
        record = rng.integers(0, RECORDS, len(own))
        record += (record % 9 == 0).astype(int)
        table = pa.table(
            {"key": KEYS.take(pa.array(record % RECORDS)), "value": own.astype(float), "word": own.astype(str)}
        )
        made.append(folder / f"{number}.parquet")
        pa.parquet.write_table(table, made[-1], row_group_size=37)
    return made


def by_unit(files: list[Path]) -> dict[int, list[tuple[int, float, str]]]:
    """As a loop over all rows finds it."""
    place, found = (
        {key: n for n, key in enumerate(KEYS.to_pylist())},
        defaultdict[int, list[tuple[int, float, str]]](list),
    )
    for file in files:
        for row in pa.parquet.read_table(file).to_pylist():
            record = place[row["key"]]
            found[record // UNIT].append((record, row["value"], row["word"]))
    return {unit: sorted(rows, key=lambda row: row[0]) for unit, rows in found.items()}


@pytest.mark.parametrize(
    ("crew", "part", "piece", "stretches_", "buffer"),
    [
        (Here(), 1 << 30, 1 << 30, 1024, 1 << 20),
        (Here(), 1, 1, 5, 11),
        (Here(), 3_000, 2_000, 16, 100),
        pytest.param(Processes(2), 3_000, 2_000, 16, 100, marks=pytest.mark.long),
    ],
)
def test_rows_of_every_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crew: Crew, part: int, piece: int, stretches_: int, buffer: int
) -> None:
    for name, value in (("PART_BYTES", part), ("PIECE_BYTES", piece), ("STRETCHES", stretches_), ("ALONE_BYTES", 0)):
        monkeypatch.setattr(spill, name, value)
    monkeypatch.setattr(spill, "BUFFER_ROWS", buffer)
    files, out = written(tmp_path, 2_000, 3), tmp_path / "out"
    out.mkdir()
    columns = {"value": "number", "word": "text"}
    small = Sorting([files[0]], {"word": "text"}, "key")
    first, second = sort_out([Sorting(files, columns, "key"), small], KEYS, UNIT, out, crew)
    wanted = by_unit(files)
    assert len(wanted) > 25
    for unit in range(-(-RECORDS // UNIT)):
        table = first.rows(unit)
        rows = [] if table is None else [tuple(row.values()) for row in table.to_pylist()]
        assert rows == wanted.get(unit, [])
    assert sum(len(second.rows(unit) or ()) for unit in range(-(-RECORDS // UNIT))) == 667
    # Nothing of the first pass is left, and parts are as large as was asked for.
    assert {file.suffix for file in out.iterdir()} == {".arrow"}
    assert (len(first.files) == 1) == (part == 1 << 30)


def test_stretches_are_all_rows_once(tmp_path: Path) -> None:
    (file,) = written(tmp_path, 500, 1)
    whole = [row for batch in batches(file, {"word": "text"}) for row in batch.column(0).to_pylist()]
    for size in (1, 900, 1 << 30):
        found = list(stretches(file, size))
        rows = [
            [row for batch in batches(own, {"word": "text"}) for row in batch.column(0).to_pylist()] for own in found
        ]
        assert [row for own in rows for row in own] == whole and len(found) == {1: 14, 1 << 30: 1}.get(size, len(found))
        assert [own.row for own in found] == [int(own[0]) for own in rows]


def test_pieces_that_do_not_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "PIECE_BYTES", 1)
    for number, cell in enumerate(("2031-05-30 14:05", "2031-05-30 14:05Z")):
        (tmp_path / f"{number}.csv").write_text(f"key,when\nk000,{cell}\n")
    files = sorted(tmp_path.glob("*.csv"))
    with pytest.raises(ValueError, match=r"0\.csv: column 'when' holds dates with a zone"):
        sort_out([Sorting(files, {"when": "date"}, "key")], KEYS, UNIT, tmp_path, Here())


def test_a_scratch_folder_that_a_worker_does_not_see(tmp_path: Path) -> None:
    files = written(tmp_path, 50, 1)
    with pytest.raises(OSError, match=r"is not there on this machine: give a scratch folder that all machines share"):
        sort_out([Sorting(files, {"word": "text"}, "key")], KEYS, UNIT, tmp_path / "elsewhere", Here())
