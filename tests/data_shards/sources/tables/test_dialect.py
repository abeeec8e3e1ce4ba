"""How CSV files are written: checked, and sayable. A quote that never closes loses nothing in silence."""

from __future__ import annotations

import gzip
import io
import random
from pathlib import Path

import numpy as np
import pytest

from data_shards.sources.readers import csv_files
from data_shards.sources.readers.csv_dialect import Dialect
from data_shards.sources.readers.table_files import batches
from tests.data_shards.sources.tables.build import AGE, events, read, rows, series

NOTE = {**AGE, "n": {"kind": "text", "column": "t"}}


def notes(**more):
    return rows(modalities=NOTE, **more)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        # Closed by the next quote, in the fourth record
        ('id,age,t\na,1,"oops\nb,2,ok\nc,3,fine\nd,4,"end"\n', r"r\.csv, line 2 .to 5.: a quoted cell goes on"),
        ('id,age,t\na,1,x\nb,2,"oops\nc,3,fine\n', r"r\.csv, line 3: a quote opens there and never closes.* line 4"),
        ('id,age,t\na,1,"oops\nb,2,ok\nc,3,"""\n', "line 2: the quoted cell of column 't' runs over 3 lines"),
        # Two stray quotes: what is between them would be one note
        ('id,age,t\na,1,"oops\nb,2,ok\nc,3,fine"\nd,4,x\n', "line 2: .* column 't' runs over 3 lines.*'b,2"),
        ('id,age,t\na,1,"he said \\"no\\" twice"\n', "line 2 .*goes on after its closing quote.*escape"),
        ('id,age,t\na,1,"x" y\n', "goes on after its closing quote"),
        ('id,age,t\na,1,x\nb,2\n', "line 3: 2 cells, and the header has 3"),
        ('id,age,t\na,1,x,y\n', "line 2: 4 cells, and the header has 3"),
        ('id,age,t\na,1,"x\ny",\n', "line 2: 4 cells, and the header has 3"),
        ("id,age,t,t\na,1,x,y\n", "2 columns called 't'"),
        ("", "is empty: it has no header line"),
        (b"id,age,t\na,1,x\nb,2,\xe9\n", "line 3: byte 0xe9 is not utf-8.*encoding: latin-1"),
        ("id,age,t\na,1,x\n".encode("utf-16"), "byte 0xff is not utf-8"),
        (b"id,age,t\na,1,x\0\n", "line 2 holds a NUL"),
    ],
)  # fmt: skip
def test_what_is_no_table_of_this_dialect_is_refused_by_line(tmp_path: Path, table: str | bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path, notes(), r_csv=table)


def test_a_stray_quote_in_a_column_that_nobody_uses_loses_no_row(tmp_path: Path) -> None:
    table = 'id,t,v,comment\na,1,5,"odd\na,2,6,\na,3,7,fine"\nb,1,8,\n'
    with pytest.raises(ValueError, match=r"e\.csv, line 2: the quoted cell of column 'comment' runs over 3 lines"):
        read(tmp_path, series(), r_csv="id\na\nb\n", e_csv=table)


def test_cells_over_lines_are_read_where_they_are_texts(tmp_path: Path) -> None:
    table = 'id,age,t\na,1,"First, the lungs.\nThen, the ""heart"".\n\n  Age, 5"\r\nb,2,"one\r\ntwo"\n\nc,3,5" tube\n'
    records, _ = read(tmp_path, notes(), r_csv=table)
    assert records["a"].values["n"] == 'First, the lungs.\nThen, the "heart".\n\n  Age, 5'
    assert records["b"].values["n"] == "one\r\ntwo" and records["c"].values["n"] == '5" tube'
    assert list(records) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "table",
    [
        'time,id,t\n2020-01-01 00:00,s1,"bad\n2020-01-01 01:00,s2,foo\n2020-01-01 02:00,s3,5"\n',
        'id,t\ns1,"bad\ns2, foo\ns3,5"\n',
        'c,id,t\n,s1,"bad\n,s2,foo\n,s3,5"\n',
        't,id\n"bad,s1\nfoo,s2\n5"\n,s3\n',
    ],
)  # fmt: skip
def test_swallowed_rows_are_known_by_their_keys(tmp_path: Path, table: str) -> None:
    mapping = rows(modalities={"n": {"kind": "text", "file": "n.csv", "column": "t"}})
    with pytest.raises(ValueError, match=r"n\.csv, line 2: .*(look like rows|cells, and the header)"):
        read(tmp_path, mapping, r_csv="id\ns1\ns2\ns3\n", n_csv=table)


@pytest.mark.parametrize("text", ["Meds:\naspirin,heparin", "Vitals\nHR,80\nRR,14", "a\nb", "Seen today.\nSigned"])
@pytest.mark.parametrize("order", [("id", "t"), ("t", "id")])
def test_notes_of_many_lines_are_notes(tmp_path: Path, text: str, order: tuple[str, str]) -> None:
    cells = {"id": "s1", "t": f'"{text}"'}
    table = ",".join(order) + "\n" + ",".join(cells[name] for name in order) + "\n"
    records, _ = read(tmp_path, rows(modalities={"n": {"kind": "text", "column": "t"}}), r_csv=table)
    assert records["s1"].values["n"] == text


def test_lines_of_blanks_and_names_in_capitals(tmp_path: Path) -> None:
    mapping = rows()
    mapping["records"]["file"] = "R.CSV"
    (tmp_path / "R.CSV").write_text("id,age\na,1\n   \nb,2\n")
    records, _ = read(tmp_path, mapping)
    assert list(records) == ["a", "b"]


def test_an_escape_character_is_taken_away_wherever_it_stands(tmp_path: Path) -> None:
    """As pandas reads it: what begins with it stands for itself."""
    table = 'id,age,t\na,1,"C:\\\\new said ""x"" and \\"y\\""\n'
    records, _ = read(tmp_path, notes(csv={"escape": "\\"}), r_csv=table)
    import pandas as pd

    assert (
        records["a"].values["n"]
        == pd.read_csv(io.StringIO(table), escapechar="\\")["t"][0]
        == 'C:\\new said "x" and "y"'
    )


def test_a_text_in_the_first_column_may_end_with_a_word(tmp_path: Path) -> None:
    mapping = rows(modalities={"n": {"kind": "text", "column": "t"}})
    records, _ = read(tmp_path, mapping, r_csv='t,id\n"See you.\nBob",a\n"One\ntwo\n\nBob",b\n')
    assert [records[key].values["n"] for key in "ab"] == ["See you.\nBob", "One\ntwo\n\nBob"]


def test_how_many_lines_a_cell_may_have_can_be_said(tmp_path: Path) -> None:
    table = 'id,age,t\na,1,"x\nb,2,y"\n'
    records, _ = read(tmp_path, notes(csv={"lines": 2}), r_csv=table)
    assert list(records) == ["a"] and records["a"].values["n"] == "x\nb,2,y"
    with pytest.raises(ValueError, match=r"line 2: the cell of column 't' runs over 3 lines, csv.lines allows 2"):
        read(tmp_path, notes(csv={"lines": 2}), r_csv='id,age,t\na,1,"x\ny\nz"\n')


@pytest.mark.parametrize(
    ("dialect", "table"),
    [
        ({"separator": ";", "decimal": ","}, "id;age;t\na;1,5;x\nb;-2;y,z\n"),
        ({"separator": "\t"}, "id\tage\tt\na\t1.5\tx\nb\t-2\ty,z\n"),
        ({"separator": "tab", "quote": None}, "id\tage\tt\na\t1.5\tx\nb\t-2\ty,z\n"),
        ({"separator": "|", "quote": "'"}, "id|age|t\na|1.5|x\nb|-2|'y,z'\n"),
        ({"escape": "\\"}, 'id,age,t\na,"1.5",x\nb,-2,"y\\,z"\n'),
        ({"encoding": "utf-16"}, 'id,age,t\na,1.5,x\nb,-2,"y,z"\n'.encode("utf-16")),
        ({"header": False}, 'a,1.5,x\nb,-2,"y,z"\n'),
        ({"header": ["id", "age", "t"]}, 'a,1.5,x\nb,-2,"y,z"\n'),
        ({"encoding": "latin-1"}, '\n\nid,age,t\r\na,1.5,x\r\nb,-2,"y,z"'),
        ({}, '\ufeffid,age,t\ra,1.5,x\rb, -2 ,"y,z"\r'),
        ({}, 'other,t,age,id\n"1","x",1.5,"a"\n"2","y,z",-2.0,"b"\n'),
    ],
)  # fmt: skip
def test_a_dialect_is_said_for_the_mapping(tmp_path: Path, dialect: dict, table: str | bytes) -> None:
    mapping = notes(csv=dialect)
    if dialect.get("header") is False:
        mapping["records"] = {"file": "r.csv", "key": "1"}
        mapping["modalities"] = {"age": {"kind": "vector", "columns": [2]}, "n": {"kind": "text", "column": 3}}
    records, _ = read(tmp_path, mapping, r_csv=table)
    assert {key: np.asarray(r.values["age"]).tolist() for key, r in records.items()} == {"a": [1.5], "b": [-2.0]}
    assert [records[key].values["n"] for key in "ab"] == ["x", "y,z"]


def test_a_file_may_be_written_in_another_way_than_the_rest(tmp_path: Path) -> None:
    mapping = series(csv={"separator": ";", "encoding": "cp1252"}) | {"csv": {"encoding": "utf-8", "decimal": ","}}
    records, _ = read(tmp_path, mapping, r_csv="id\na_1\n", e_csv="id;t;v;€\na_1;1,5;2,25;€\n".encode("cp1252"))
    assert events(records["a_1"]) == [(1.5, 0, 2.25)], "the decimal mark is the mapping's, the separator the file's"
    twice = series(csv={"separator": ";"})
    twice["modalities"]["o"] = {**twice["modalities"]["s"], "csv": {"separator": ","}}
    with pytest.raises(ValueError, match=r"two sections say with csv how e.csv is written"):
        read(tmp_path, twice)


def test_files_by_name(tmp_path: Path) -> None:
    """Tabs in .tsv, packed files; a separator that looks wrong is said, not guessed."""
    mapping = rows()
    mapping["records"]["file"] = "r.tsv.gz"
    (tmp_path / "r.tsv.gz").write_bytes(gzip.compress(b"id\tage\na\t3\n"))
    records, _ = read(tmp_path, mapping)
    assert np.asarray(records["a"].values["age"]).tolist() == [3.0]
    (tmp_path / "r.tsv.gz").write_bytes(gzip.compress(b"id\tage\na\t3\n" * 10_000)[:-20])
    with pytest.raises(ValueError, match=r"r\.tsv\.gz cannot be read: .*[Tt]runcated"):
        read(tmp_path, mapping)
    with pytest.raises(ValueError, match=r"no column 'id'; it has 'id;age' .*separator ','.*csv: .separator: \";\""):
        read(tmp_path, rows(), r_csv="id;age\na;1\n")


@pytest.mark.parametrize(
    ("dialect", "sentence"),
    [
        ({"separator": ";;"}, "csv.separator: ';;' is not one character"),
        ({"decimal": "'"}, "csv.decimal: the decimal mark is . or ,"),
        ({"encoding": "utf-9"}, "csv.encoding: there is no encoding 'utf-9'"),
        ({"separator": '"'}, "csv: separator, quote and escape must be different"),
        ({"sep": ";"}, "csv.sep: there is no such entry"),
        ({"header": ["id"]}, "csv.header gives 1 names, and line 1 has 3 cells"),
        ({"quote": None, "escape": "\\"}, "csv: an escape character stands before quotes, and there are none"),
    ],
)  # fmt: skip
def test_a_dialect_that_cannot_be_is_refused(tmp_path: Path, dialect: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path, notes(csv=dialect), r_csv="id,age,t\na,1,x\n")


def slow(file: Path, names: list[str], dialect: Dialect) -> list[list[str]]:
    """Every row by `csv.reader` at once."""
    import csv

    with file.open(newline="", encoding="utf-8") as stream:
        header, *body = [
            row for row in csv.reader(io.StringIO(stream.read(), newline=""), **dialect.reader("x.csv")) if row
        ]
    return [[row[header.index(name)] for name in names] for row in body]


def test_blocks_by_arrow_and_blocks_with_quotes_give_the_same_rows(tmp_path: Path, monkeypatch) -> None:
    """Blocks of a few lines: some without a quote, some where a quoted cell begins in one and ends in a later one."""
    rng = random.Random(0)
    for trial in range(40):
        ends = rng.choice(["\n", "\r\n", "\r"])
        cells = [
            "",
            " ",
            "x",
            "5",
            "né",
            "\u2028",
            "a b",
            '"q ""r"""',
            '"x,y"',
            f'"two{ends}lines, and"',
            f'"{ends}{ends}"',
        ]
        plain = [cell for cell in cells if '"' not in cell]
        lines = [
            ",".join(f"k{n}" if c == 0 else rng.choice(cells if rng.random() < 0.2 else plain) for c in range(4))
            for n in range(200)
        ]
        file = tmp_path / "x.csv"
        file.write_text(ends.join(["k,a,b,c", *lines]) + (ends if trial % 2 else ""), encoding="utf-8", newline="")
        monkeypatch.setattr(csv_files, "BLOCK_BYTES", rng.choice([40, 100, 1000, 1 << 20]))
        dialect = Dialect(lines=9)
        got = [
            row
            for b in csv_files.csv_batches(file, ["c", "k"], dialect)
            for row in zip(*b.to_pydict().values(), strict=True)
        ]
        assert [list(row) for row in got] == slow(file, ["c", "k"], dialect)
    assert sum(len(b) for b in batches(file, {"k": "text"})) == 200
