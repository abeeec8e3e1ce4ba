"""Files as they come: folders of partitions, JSON lines, pictures in cells, many files of a pattern."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from data_shards import create_source, pack
from tests.data_shards.sources.tables.build import AGE, events, read, rows, series

LABEL = {"y": {"kind": "binary", "column": "y"}}


def partitioned(folder: Path) -> dict:
    for value in (0, 1):
        place = folder / "rows" / f"y={value}" / "site=a%20b"
        place.mkdir(parents=True)
        keys = [f"r{value}{n}" for n in range(3)]
        pa.parquet.write_table(pa.table({"id": keys, "age": [1.0, 2.0, 3.0]}), place / f"part-{value}.parquet")
    mapping = rows(tasks=LABEL)
    mapping["records"] = {"file": "rows/**/*.parquet", "key": "id", "group": "site"}
    return mapping


def test_columns_that_only_the_path_has(tmp_path: Path) -> None:
    records, _ = read(tmp_path, partitioned(tmp_path))
    assert {key: r.targets["y"] for key, r in records.items()} == {
        f"r{v}{n}": float(v) for v in (0, 1) for n in range(3)
    }
    assert {r.group for r in records.values()} == {"a b"}
    empty = tmp_path / "rows" / "y=__HIVE_DEFAULT_PARTITION__" / "site=c"
    empty.mkdir(parents=True)
    pa.parquet.write_table(pa.table({"id": ["r2"], "age": [1.0], "y": [1]}), empty / "part.parquet")
    records, _ = read(tmp_path, partitioned_mapping())
    assert records["r2"].targets["y"] == 1.0, "the file's own column comes before the path's"


def test_a_column_of_a_file_comes_before_a_folder_of_that_name(tmp_path: Path) -> None:
    mapping = rows()
    for kind, table in (("csv", "id,age\ns1,1\ns2,2\n"), ("jsonl", '{"id": "s1", "age": 1}\n{"id": "s2", "age": 2}\n')):
        place = tmp_path / "age=5"
        place.mkdir(exist_ok=True)
        (place / f"r.{kind}").write_text(table)
        mapping["records"]["file"] = f"age=5/r.{kind}"
        records, _ = read(tmp_path, mapping)
        assert [np.asarray(r.values["age"]).tolist() for r in records.values()] == [[1.0], [2.0]]


def test_large_integers_keep_every_digit_as_text(tmp_path: Path) -> None:
    mapping = rows()
    mapping["records"] = {"file": "r.jsonl", "key": "id", "group": "g"}
    table = lines({"id": "a", "age": 1, "g": 9007199254740993}, {"id": "b", "age": 2.5, "g": 2.0})
    records, _ = read(tmp_path, mapping, r_jsonl=table)
    assert [r.group for r in records.values()] == ["9007199254740993", "2.0"]
    assert [np.asarray(r.values["age"]).tolist() for r in records.values()] == [[1.0], [2.5]]


def partitioned_mapping() -> dict:
    mapping = rows(tasks=LABEL)
    mapping["records"] = {"file": "rows/**/*.parquet", "key": "id", "group": "site"}
    return mapping


def test_a_partition_without_a_value_is_empty_and_a_folder_is_no_file(tmp_path: Path) -> None:
    place = tmp_path / "rows" / "y=__HIVE_DEFAULT_PARTITION__"
    place.mkdir(parents=True)
    (place / "part.csv").write_text("id,age\na,1\n")
    mapping = rows(tasks=LABEL)
    mapping["records"]["file"] = "rows/*/*.csv"
    records, _ = read(tmp_path, mapping)
    assert records["a"].targets["y"] is None
    mapping["records"]["file"] = "rows"
    with pytest.raises(ValueError, match=r"rows is a folder; give the files in it as a pattern"):
        read(tmp_path, mapping)
    mapping["records"]["file"] = "rows/*.parquet"
    with pytest.raises(ValueError, match=r"no file matches .*rows"):
        read(tmp_path, mapping)


def test_every_file_of_a_pattern_is_read_also_of_splits(tmp_path: Path) -> None:
    for n, part in enumerate(("train", "test")):
        (tmp_path / f"p{n}.csv").write_text(f"id,p\nr{n},{part}\n")
        (tmp_path / f"r{n}.csv").write_text(f"id,age\nr{n},{n}\n")
    mapping = rows(split={"file": "p*.csv", "key": "id", "columns": {"default": "p"}})
    mapping["records"]["file"] = "r?.csv".replace("?", "*")
    records, _ = read(tmp_path, mapping)
    assert {key: r.splits["default"] for key, r in records.items()} == {"r0": "train", "r1": "test"}


def lines(*objects: object) -> str:
    return "".join((o if isinstance(o, str) else json.dumps(o)) + "\n" for o in objects)


def test_json_lines_are_a_table(tmp_path: Path) -> None:
    mapping = rows(
        modalities={
            **AGE,
            "n": {"kind": "text", "column": "t"},
            "e": {"kind": "vector", "column": "emb", "size": 2},
        },
        tasks=LABEL,
    )
    mapping["records"]["file"] = "r.jsonl"
    table = lines(
        {"id": "a", "age": 1.5, "t": "x\ny", "emb": [1, 2.5], "y": True},
        "",
        {"id": "b", "age": None, "t": "", "y": 0},
        {"id": "c", "age": 2, "t": "é", "emb": None},
    )
    records, notes = read(tmp_path, mapping, r_jsonl="\ufeff" + table)
    assert [float(r.targets["y"]) if r.targets["y"] is not None else None for r in records.values()] == [1.0, 0.0, None]
    assert np.asarray(records["a"].values["e"]).tolist() == [1.0, 2.5] and records["a"].values["n"] == "x\ny"
    assert records["b"].values == {} and records["c"].values["n"] == "é"
    assert np.asarray(records["c"].values["age"]).tolist() == [2.0] and notes == {}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("[1]", "line 2 begins a JSON array"),
        ("5", "line 2 is a JSON whole number, not an object"),
        ('{"id": "b", "age": 1', "line 2 is not JSON"),
        ('{"id": "b", "id": "c"}', "line 2 is not read: it names the field 'id' twice"),
        ('{"id": "b", "age": Infinity}', "record b, modality age: holds NaN or infinity"),
        ('{"id": "b", "age": {"a": 1}}', "field 'age' holds dict"),
        ('{"id": "b", "age": [1]}', "field 'age' holds int and list"),
        ('{"id": "\\ud83d", "age": 1}', "field 'id' cannot be read"),
        ('{"id":' + "[" * 100_000, "line 2 is not read"),
    ],
)  # fmt: skip
def test_json_lines_that_are_none(tmp_path: Path, line: str, sentence: str) -> None:
    mapping = rows()
    mapping["records"]["file"] = "r.jsonl"
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path, mapping, r_jsonl=lines({"id": "a", "age": 1}, line))
    with pytest.raises(ValueError, match=r"no column 'age'; it has 'id'"):
        read(tmp_path, mapping, r_jsonl=lines({"id": "a"}))
    with pytest.raises(ValueError, match="line 2 is not UTF-8"):
        read(tmp_path, mapping, r_jsonl=b'{"id": "a", "age": 1}\n{"id": "\xe9"}\n')


def test_pictures_in_cells_of_a_parquet_file(tmp_path: Path) -> None:
    picture, stored = np.arange(64, dtype=np.uint8).reshape(8, 8), io.BytesIO()
    Image.fromarray(picture).save(stored, "PNG")
    (tmp_path / "p.png").write_bytes(stored.getvalue())
    cells = [{"bytes": stored.getvalue(), "path": "x.png"}, {"bytes": None, "path": "p.png"}, None]
    image = {"i": {"kind": "image", "column": "image", "channels": 1, "height": 8, "width": 8}}
    mapping = rows(modalities=image)
    mapping["records"]["file"] = "r.parquet"
    for column in (pa.array(cells), pa.array([stored.getvalue(), stored.getvalue(), None])):
        pa.parquet.write_table(pa.table({"id": ["a", "b", "c"], "image": column}), tmp_path / "r.parquet")
        records, _ = read(tmp_path, mapping)
        assert [np.asarray(records[key].values["i"]).tolist() for key in "ab"] == [[picture.tolist()]] * 2
        assert records["c"].values == {}
    pa.parquet.write_table(pa.table({"id": ["a"], "image": [b"no picture"]}), tmp_path / "r.parquet")
    with pytest.raises(ValueError, match=r"r\.parquet, record 'a': picture in 'image' cannot be read"):
        read(tmp_path, mapping)
    pa.parquet.write_table(pa.table({"id": ["a"], "image": [5]}), tmp_path / "r.parquet")
    with pytest.raises(ValueError, match="column 'image' holds int64, and a file is given by a path"):
        read(tmp_path, mapping)


def test_a_named_column_twice_in_parquet_and_dates_as_text(tmp_path: Path) -> None:
    mapping = rows()
    mapping["records"]["file"] = "r.parquet"
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array([1]), pa.array([2])], names=["id", "age", "age"])
    pa.parquet.write_table(twice, tmp_path / "r.parquet")
    with pytest.raises(ValueError, match="2 columns called 'age'"):
        read(tmp_path, mapping)
    dates = pa.table({"id": pa.array([0], pa.timestamp("s")), "age": [1]})
    pa.parquet.write_table(dates, tmp_path / "r.parquet")
    with pytest.raises(ValueError, match=r"column 'id' holds timestamp\[.*\], and is used as text"):
        read(tmp_path, mapping)
    (tmp_path / "r.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"r\.parquet cannot be read as Parquet"):
        read(tmp_path, mapping)


def test_counts_are_in_the_report_of_the_pack(tmp_path: Path) -> None:
    read(tmp_path, series(outside="skip"), r_csv="id\na\n", e_csv="id,t,v\na,1,5\na,2,NA\na,99,5\n")
    report = pack(create_source("tables", {"path": str(tmp_path / "mapping.yaml")}), str(tmp_path / "out"))
    counted = {name: count for name, count in report["source"]["notes"].items() if count}
    assert counted == {"observations": 1, "observations_outside_window": 1, "words_read_as_empty.v": 1}
    assert report["records"] == 1


def test_a_vector_of_integers_in_lists(tmp_path: Path) -> None:
    mapping = rows(modalities={"e": {"kind": "vector", "column": "emb", "size": 2}})
    mapping["records"]["file"] = "r.parquet"
    for kind in (pa.list_(pa.int64()), pa.list_(pa.float32(), 2), pa.large_list(pa.float64())):
        pa.parquet.write_table(pa.table({"id": ["a"], "emb": pa.array([[1, 2]], kind)}), tmp_path / "r.parquet")
        records, _ = read(tmp_path, mapping)
        assert np.asarray(records["a"].values["e"]).tolist() == [1.0, 2.0]
    pa.parquet.write_table(pa.table({"id": ["a"], "emb": [[2**24 + 1, 2]]}), tmp_path / "r.parquet")
    with pytest.raises(ValueError, match="column 'emb' of record 'a': whole numbers up to 16777217"):
        read(tmp_path, mapping)


def test_times_of_two_records_do_not_mix(tmp_path: Path) -> None:
    """Rows of a record lie apart in the table, in any order."""
    records, _ = read(tmp_path, series(), r_csv="id\na\nb\n", e_csv="id,t,v\nb,2,4\na,3,1\nb,1,3\na,0,2\n")
    assert events(records["a"]) == [(0.0, 0, 2.0), (3.0, 0, 1.0)] and events(records["b"]) == [
        (1.0, 0, 3.0),
        (2.0, 0, 4.0),
    ]
