"""What a mapping lists is what it says: words such as NA or None, classes, groups, parts, unknown keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.data_shards.sources.tables.build import AGE, events, read, rows, series


def as_parquet(path: Path, table: str) -> None:
    """A CSV text as a Parquet file of strings; empty cells are null."""
    header, *lines = [line.split(",") for line in table.strip().split("\n")]
    columns = {name: [line[n] or None for line in lines] for n, name in enumerate(header)}
    pa.parquet.write_table(pa.table(columns), path)


@pytest.fixture(params=["csv", "parquet"])
def lay(request, tmp_path):
    """Reads the same cells from CSV and from Parquet."""

    def lay_and_read(mapping: dict, **files: str):
        text = mapping
        for name, content in files.items():
            if request.param == "parquet":
                as_parquet(tmp_path / f"{name}.parquet", content)
                text = _renamed(text, f"{name}.csv", f"{name}.parquet")
            else:
                (tmp_path / f"{name}.csv").write_text(content)
        return read(tmp_path, text)

    return lay_and_read


def _renamed(tree, old: str, new: str):
    if isinstance(tree, dict):
        return {key: _renamed(value, old, new) for key, value in tree.items()}
    return new if tree == old else tree


WORDS = ("NA", "None", "nan", "NULL", "null", "NaN", "n/a")


@pytest.mark.parametrize("word", WORDS)
def test_a_listed_class_is_that_class(lay, word: str) -> None:
    task = {"kind": "multiclass", "column": "sev", "classes": [word, "Mild"]}
    records, notes = lay(rows(tasks={"sev": task}), r=f"id,age,sev\ns0,20,{word}\ns1,21,Mild\ns2,22,\ns3,22,{word}\n")
    assert [records[f"s{n}"].targets["sev"] for n in range(4)] == [0.0, 1.0, None, 0.0] and notes == {}


@pytest.mark.parametrize("word", WORDS)
def test_a_word_for_empty_that_is_no_class_is_unlabelled_and_counted(lay, word: str) -> None:
    task = {"kind": "binary", "column": "y"}
    records, notes = lay(rows(tasks={"y": task}), r=f"id,age,y\ns0,20,{word}\ns1,21,1\ns2,{word},0\n")
    assert [records[f"s{n}"].targets["y"] for n in range(3)] == [None, 1.0, 0.0]
    assert "age" not in records["s2"].values
    assert notes == {"labels_empty.y": 1, "words_read_as_empty.age": 1}


@pytest.mark.parametrize("word", WORDS)
def test_a_listed_channel_is_that_channel(lay, word: str) -> None:
    long = series(channel="ch", value="v", channels=[word, "K"], other_channels="skip")
    records, notes = lay(long, r="id\na\nb\n", e=f"id,t,ch,v\na,1,{word},139\nb,1,K,4\nb,2,X,9\nb,3,K,{word}\n")
    assert events(records["a"]) == [(1.0, 0, 139.0)] and events(records["b"]) == [(1.0, 1, 4.0)]
    assert notes == {"observations": 2, "rows_of_other_channels": 1, "empty_values": 1, "words_read_as_empty.v": 1}


@pytest.mark.parametrize("word", ["NA", "None", "NULL"])
def test_keys_groups_parts_and_texts_are_what_they_say(lay, word: str) -> None:
    mapping = rows(modalities={"n": {"kind": "text", "column": "t"}}, split={"columns": {"default": "p"}})
    mapping["records"]["group"] = "g"
    records, notes = lay(mapping, r=f"id,g,p,t\n{word},{word},{word},{word}\na,,train,\nb,{word},,x\n")
    one = records[word]
    assert (one.group, one.splits, one.values) == (word, {"default": word}, {"n": word})
    assert (records["a"].group, records["a"].values) == ("a", {}) and records["b"].splits == {}
    assert notes == {
        "records_without_group": 1,
        "records_without_part.default": 1,
        "groups_called_like_empty": 2,
        "parts_called_like_empty.default": 1,
    }


def test_words_for_empty_can_be_said_and_then_hold_everywhere_but_where_they_are_listed(lay) -> None:
    mapping = rows(
        csv={"null": ["-", "NA"]},
        modalities={**AGE, "n": {"kind": "text", "column": "t"}},
        tasks={"y": {"kind": "multiclass", "column": "y", "classes": ["NA", "b"]}},
    )
    records, notes = lay(mapping, r="id,age,t,y\na,-,NA,NA\nb,NA,-,-\nc,1,null,b\n")
    assert records["a"].values == {} and records["a"].targets["y"] == 0.0
    assert records["b"].values == {} and records["b"].targets["y"] is None
    assert records["c"].values["n"] == "null"
    assert notes == {"words_read_as_empty.age": 2, "words_read_as_empty.t": 2, "words_read_as_empty.y": 1}
    with pytest.raises(ValueError, match=r"row 1: column 'age': 'null' is no number"):
        lay(mapping, r="id,age,t,y\na,null,x,b\n")


def test_yaml_reads_the_key_null_as_nothing_and_it_is_understood(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("id,age\na,null\nb,-\nc,3\n")
    (tmp_path / "m.yaml").write_text(
        "name: x\nrecords: {file: r.csv, key: id}\ncsv: {null: [null, '-']}\n"
        "modalities: {age: {kind: vector, columns: [age]}}\n"
    )
    from data_shards import create_source

    records = {r.key: r.values for r in create_source("tables", {"path": str(tmp_path / "m.yaml")}).records()}
    assert records["a"] == {} and records["b"] == {} and np.asarray(records["c"]["age"]).tolist() == [3.0]


@pytest.mark.parametrize(
    ("classes", "cells"),
    [
        (["1", "0"], ("1", "0")),
        (["yes", "no"], ("yes", "no")),
        (["true", "false"], ("true", "false")),
        (["True", "False"], ("True", "False")),
        (["1", "0"], ("1.0", "0.0")),
        (["no", "yes"], ("no", "yes")),
        (["survived", "died"], ("0", "1")),
        (["survived", "died"], ("survived", "died")),
        (["survived", "died"], ("No", "TRUE")),
        (["false", "true"], ("FALSE", "True")),
        (["died", "0"], ("died", "0")),
        ([], ("0.0", "1")),
    ],
)  # fmt: skip
def test_classes_that_are_given_win_over_words_that_are_known(lay, classes: list[str], cells: tuple[str, str]) -> None:
    task = {"kind": "binary", "column": "y", "classes": classes}
    records, _ = lay(rows(tasks={"y": task}), r=f"id,age,y\nA,1,{cells[0]}\nB,2,{cells[1]}\n")
    assert (records["A"].targets["y"], records["B"].targets["y"]) == (0.0, 1.0)


@pytest.mark.parametrize("cell", ["1", "true", "maybe"])
def test_what_the_given_classes_do_not_list_is_refused(lay, cell: str) -> None:
    task = {"kind": "binary", "column": "y", "classes": ["yes", "no"]}
    with pytest.raises(ValueError, match=f"label '{cell}' of column 'y', record 'B', is none of yes, no"):
        lay(rows(tasks={"y": task}), r=f"id,age,y\nA,1,yes\nB,2,{cell}\n")


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ({"kind": "binary", "classes": ["a", "a"]}, "classes names one twice: a, a"),
        ({"kind": "multiclass", "classes": ["a", "a", "b"]}, "classes names one twice: a, a, b"),
        ({"kind": "multiclass"}, "a multiclass task lists its classes"),
    ],
)  # fmt: skip
def test_classes_that_cannot_be_are_refused(lay, task: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"tasks.y: {sentence}"):
        lay(rows(tasks={"y": {"column": "y", **task}}), r="id,age,y\nA,1,a\n")


def test_shares_are_shares(lay) -> None:
    with pytest.raises(ValueError, match="split: each of the shares lies between 0 and 1"):
        lay(rows(split={"shares": {"train": 1.5, "val": -0.5}}), r="id,age\nA,1\n")


def test_labels_of_unknown_records_are_refused_unless_said(lay) -> None:
    task = {"kind": "binary", "file": "l.csv", "column": "y"}
    tables = {"r": "id,age\n1,1\n2,2\n3,3\n10,4\n", "l": "id,y\n01,1\n02,0\n03,1\n10,0\n"}
    with pytest.raises(ValueError, match=r"3 rows belong to records .* the first to '01'; set unknown_keys: skip"):
        lay(rows(tasks={"y": task}), **tables)
    records, notes = lay(rows(tasks={"y": {**task, "unknown_keys": "skip"}}), **tables)
    assert [records[key].targets["y"] for key in ("1", "2", "3", "10")] == [None, None, None, 0.0]
    assert notes == {"rows_of_unknown_records": 3}


def test_one_table_has_one_policy_for_unknown_keys(tmp_path: Path) -> None:
    task = {"kind": "binary", "file": "l.csv", "column": "y", "unknown_keys": "skip"}
    mapping = rows(tasks={"y": task, "z": {**task, "unknown_keys": "error"}})
    with pytest.raises(ValueError, match=r"different things of unknown_keys of l\.csv"):
        read(tmp_path, mapping, r_csv="id,age\n1,1\n", l_csv="id,y\n1,1\n")


@pytest.mark.parametrize(
    ("part", "usual"), [("Train", "train"), ("validation", "val"), ("dev", "val"), ("TEST", "test")]
)
def test_a_part_that_nothing_would_use_is_refused(lay, part: str, usual: str) -> None:
    mapping = rows(split={"columns": {"default": "p"}})
    table = f"id,age,p\na,1,{part}\n"
    with pytest.raises(ValueError, match=f"named '{part}'; it should be called '{usual}' .*rename: .{part}: {usual}"):
        lay(mapping, r=table)
    mapping["split"]["rename"] = {part: usual}
    records, _ = lay(mapping, r=table)
    assert records["a"].splits == {"default": usual}
    with pytest.raises(ValueError, match=f"split: .*'{part}'; it should be called '{usual}'"):
        lay(rows(split={"shares": {part: 1.0}}), r=table)


def test_only_cells_of_listed_channels_must_be_numbers(lay) -> None:
    long = series(channel="c", value="v", channels=["K"], other_channels="skip")
    table = "id,t,c,v\na,1,K,4.1\na,2,CULTURE,POSITIVE\nb,1,K,4\n"
    records, notes = lay(long, r="id\na\nb\n", e=table)
    assert events(records["a"]) == [(1.0, 0, pytest.approx(4.1))] and events(records["b"]) == [(1.0, 0, 4.0)]
    assert notes == {"observations": 2, "rows_of_other_channels": 1}
    with pytest.raises(ValueError, match=r"'POSITIVE' in column 'v', record 'a', is no number"):
        lay(long, r="id\na\nb\n", e=table.replace("CULTURE", "K"))
    both = {**long["modalities"], "cultures": {**long["modalities"]["s"], "channels": ["CULTURE"]}}
    with pytest.raises(ValueError, match=r"'POSITIVE' in column 'v', record 'a', is no number"):
        lay({**long, "modalities": both}, r="id\na\nb\n", e=table)


def test_keys_that_a_tar_member_cannot_have_are_escaped_on_demand(lay) -> None:
    from data_shards.records.record import unescape_key

    mapping = rows()
    table = "id,age\na.jpg,1\nmosi[3],2\na_b,3\né 1,4\n"
    with pytest.raises(ValueError, match=r"'a\.jpg' must be .*keys: escape"):
        lay(mapping, r=table)
    mapping["records"]["keys"] = "escape"
    records, _ = lay(mapping, r=table)
    assert list(records) == ["a_2ejpg", "mosi_5b3_5d", "a_5fb", "_c3_a9_201"]
    assert [unescape_key(key) for key in records] == ["a.jpg", "mosi[3]", "a_b", "é 1"]
    assert [np.asarray(r.values["age"]).tolist() for r in records.values()] == [[1.0], [2.0], [3.0], [4.0]]
