"""Codes of a long table, with times and values or without, and plain categories; what cells stand for numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml

from data_shards import create_source, open_manifest, pack
from data_shards.records.record import Codes
from tests.data_shards.sources.tables.build import events, read

STAYS = "id,sex,ward,race\na,f,north,\nb,m,,NA\nc,,,\n"
DRUGS = "id,t,code,dose\nb,3,aspirin,100\na,2,heparin,\na,2,aspirin,> 500\na,1,,5\na,60,NA,1\nb,1,aspirin,50.5\n"


def long(**more: Any) -> dict[str, Any]:
    section = {"kind": "codes", "file": "d.csv", "column": "code", **more}
    return {"records": {"file": "r.csv", "key": "id"}, "modalities": {"drugs": section}}


def plain(value: Any) -> tuple[Any, ...]:
    assert isinstance(value, Codes)
    columns = (None if own is None else own.tolist() for own in (value.times_O, value.values_O))
    return value.codes, *columns


def test_codes_without_times(tmp_path: Path) -> None:
    records, counted = read(tmp_path, long(), r_csv=STAYS, d_csv=DRUGS)
    assert plain(records["a"].values["drugs"]) == (["heparin", "aspirin", "NA"], None, None)
    assert plain(records["b"].values["drugs"]) == (["aspirin", "aspirin"], None, None)
    assert "drugs" not in records["c"].values
    assert counted == {"codes": 5, "codes_missing.code": 1, "codes_called_like_empty.code": 1}


def test_codes_with_times_and_values(tmp_path: Path) -> None:
    mapping = long(time="t", horizon=48, outside="skip", value="dose", replace={"> 500": 600})
    records, counted = read(tmp_path, mapping, r_csv=STAYS, d_csv=DRUGS)
    codes, times, values = plain(records["a"].values["drugs"])
    assert (codes, times) == (["heparin", "aspirin"], [2, 2])
    assert np.isnan(values[0]) and values[1] == 600
    assert plain(records["b"].values["drugs"]) == (["aspirin", "aspirin"], [3, 1], [100, 50.5])
    assert counted == {
        "codes": 4, "codes_missing.code": 1, "codes_outside_window": 1, "numbers_replaced.dose": 1
    }  # fmt: skip
    spec = create_source("tables", {"path": str(tmp_path / "mapping.yaml")}).schema.modalities[0]
    assert (spec.kind, spec.timed, spec.valued, spec.codes, spec.horizon) == ("codes", True, True, 0, 48.0)


def test_a_word_for_empty_is_said_by_null_unless_the_vocabulary_has_it(tmp_path: Path) -> None:
    mapping = long() | {"csv": {"null": ["NA"]}}
    records, counted = read(tmp_path, mapping, r_csv=STAYS, d_csv=DRUGS)
    assert records["a"].values["drugs"].codes == ["heparin", "aspirin"] and counted["codes_missing.code"] == 2
    mapping = long(vocabulary=["aspirin", "NA"]) | {"csv": {"null": ["NA"]}}
    records, _ = read(tmp_path, mapping, r_csv=STAYS, d_csv=DRUGS)
    assert records["a"].values["drugs"].codes == ["heparin", "aspirin", "NA"], "the vocabulary sorts out when packing"


def test_categories_name_their_column(tmp_path: Path) -> None:
    mapping = long()
    mapping["modalities"] = {"who": {"kind": "codes", "columns": ["sex", "ward", "race"]}}
    records, counted = read(tmp_path, mapping, r_csv=STAYS)
    assert plain(records["a"].values["who"]) == (["sex=f", "ward=north"], None, None)
    assert plain(records["b"].values["who"]) == (["sex=m", "race=NA"], None, None)
    assert "who" not in records["c"].values, "nothing is known: absent"
    assert counted == {
        "codes": 4, "codes_missing.sex": 1, "codes_missing.ward": 2, "codes_missing.race": 2,
        "codes_called_like_empty.race": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"columns": ["sex"]}, r"modalities\.drugs: codes have either column \(long form\) or columns"),
        ({"column": None}, r"modalities\.drugs: codes have either column \(long form\) or columns"),
        ({"column": None, "columns": ["sex"], "time": "t"}, "plain categories .* no value and no time"),
        ({"vocabulary": ["x", "y", "x"]}, "vocabulary names 'x' twice"),
        ({"vocabulary": ["x"], "min_count": 2}, "min_count is for a learned vocabulary, and this one is given"),
        ({"max_codes": 1_000_001}, "max_codes"),
        ({"replace": {"x": 1}}, "replace is for the numbers of a value column"),
        ({"value": "dose"}, r"d\.csv, row 3: column 'dose': '> 500' is no number"),
        ({"time": "t", "horizon": 48}, r"d\.csv: 1 codes of a unit are outside 0 to 48 hours, the first at 60"),
        ({"max_length": 2}, "record a, modality drugs: 3 codes, at most 2 are allowed"),
    ],
)
def test_what_is_wrong_with_codes_is_a_sentence(tmp_path: Path, more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path, long(**more), r_csv=STAYS, d_csv=DRUGS)


def test_cells_stand_for_numbers_in_every_kind_of_column(tmp_path: Path) -> None:
    """Vectors, series in both forms, targets; a cell in quotes and one with blanks around; an empty one too."""
    mapping = {
        "records": {"file": "r.csv", "key": "id"},
        "modalities": {
            "age": {"kind": "vector", "columns": ["age"], "empty": "absent", "replace": {"> 89": 90, "unk": None}},
            "long": {
                "kind": "series", "file": "e.csv", "time": "t", "horizon": 9, "channel": "c", "value": "v",
                "channels": ["x"], "replace": {"neg": 0, "<1": 0.5},
            },
            "wide": {
                "kind": "series", "file": "w.csv", "time": "t", "horizon": 9, "columns": ["p"], "replace": {"hi": 2}
            },
        },
        "tasks": {"stay": {"kind": "regression", "column": "days", "replace": {"long": 99}}},
    }  # fmt: skip
    files = {
        "r_csv": "id,age,days\na,> 89,long\nb,unk,3\nc, > 89 ,\n",
        "e_csv": "id,t,c,v\na,1,x,neg\na,2,x,<1\na,3,x,7\n",
        "w_csv": "id,t,p\nb,1,hi\nb,2,4\n",
    }
    records, counted = read(tmp_path, mapping, **files)
    assert [r.values["age"].tolist() if "age" in r.values else None for r in records.values()] == [[90], None, [90]]
    assert events(records["a"], "long") == [(1, 0, 0), (2, 0, 0.5), (3, 0, 7)]
    assert events(records["b"], "wide") == [(1, 0, 2), (2, 0, 4)]
    assert records["a"].targets["stay"] == 99 and records["b"].targets["stay"] == 3
    replaced = {name: n for name, n in counted.items() if name.startswith("numbers_replaced")}
    assert replaced == {
        "numbers_replaced.age": 3, "numbers_replaced.v": 2, "numbers_replaced.p": 1, "numbers_replaced.days": 1
    }  # fmt: skip


def test_typed_numbers_are_replaced_as_their_text_is(tmp_path: Path) -> None:
    """-1 of a Parquet column of integers, -1.0 of one of floats: what a CSV file of them has."""
    table = {"id": ["a", "b", "c"], "whole": pa.array([-1, 4, None], pa.int32()), "float": [-1.0, 0.1, None]}
    pa.parquet.write_table(pa.table(table), tmp_path / "r.parquet")
    vector = {"kind": "vector", "columns": ["whole", "float"], "empty": "zero", "replace": {"-1": 7, "-1.0": 8}}
    mapping = {"records": {"file": "r.parquet", "key": "id"}, "modalities": {"v": vector}}
    typed, counted = read(tmp_path, mapping)
    mapping["records"] = {"file": "r.csv", "key": "id"}
    texts, same = read(tmp_path, mapping, r_csv="id,whole,float\na,-1,-1.0\nb,4,0.1\nc,,\n")
    for records in (typed, texts):
        assert [r.values["v"].tolist() for r in records.values()] == [[7, 8], [4, pytest.approx(0.1)], [0, 0]]
    assert counted == same == {"numbers_replaced.whole": 1, "numbers_replaced.float": 1}


def test_two_meanings_of_one_cell_are_refused(tmp_path: Path) -> None:
    mapping = {
        "records": {"file": "r.csv", "key": "id"},
        "modalities": {
            "one": {"kind": "vector", "columns": ["x"], "replace": {"hi": 1}},
            "two": {"kind": "vector", "columns": ["x"], "replace": {"hi": 2}},
        },
    }
    with pytest.raises(ValueError, match="two sections say with replace what 'hi' of column 'x' means, and not the sa"):
        read(tmp_path, mapping, r_csv="id,x\na,hi\n")


def packed(folder: Path, name: str, mapping: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The report, and the codes of the vocabulary in its order."""
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **mapping}, sort_keys=False))
    report = pack(create_source("tables", {"path": str(folder / f"{name}.yaml")}), str(folder / name))
    return report["source"]["notes"], open_manifest(str(folder / name)).vocabulary("drugs").names


def test_vocabularies_are_learned_or_given(tmp_path: Path) -> None:
    """By the training part; as a list; as a file; as another packed data set's. Test has a code that training lacks."""
    (tmp_path / "r.csv").write_text("id,age,part\na,1,train\nb,2,train\nc,,train\nd,4,test\n")
    (tmp_path / "d.csv").write_text("id,code\na,x\na,y\na,x\nb,x\nb,z\nc,w\nc,w\nd,x\nd,new\n")
    (tmp_path / "codes.txt").write_text("z\nnew\nx\n")
    base = long() | {"split": {"columns": {"default": "part"}}}
    notes, names = packed(tmp_path, "learned", base)
    assert names == ("x", "w", "y", "z") and notes["codes_unknown.drugs"] == 1
    base["modalities"]["drugs"]["min_count"] = 2
    notes, names = packed(tmp_path, "rare", base)
    assert names == ("x",) and (notes["codes_rare.drugs"], notes["codes_unknown.drugs"]) == (4, 1)
    del base["modalities"]["drugs"]["min_count"]
    base["modalities"]["drugs"]["vocabulary"] = "codes.txt"
    notes, names = packed(tmp_path, "file", base)
    assert names == ("z", "new", "x") and notes["codes_unknown.drugs"] == 3
    for name, given in (("list", ["new", "x"]), ("same", "learned")):
        base["modalities"]["drugs"]["vocabulary"] = given
        _, names = packed(tmp_path, name, base)
        assert names == (("new", "x") if name == "list" else ("x", "w", "y", "z"))


def test_only_records_that_are_packed_teach_a_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("id,age\na,1\nb,\n")
    (tmp_path / "d.csv").write_text("id,code\na,x\nb,y\n")
    mapping = long()
    mapping["records"]["need_any"] = ["age"]
    mapping["modalities"]["age"] = {"kind": "vector", "columns": ["age"]}
    mapping["split"] = {"shares": {"train": 1.0}}
    assert packed(tmp_path, "some", mapping)[1] == ("x",)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("gone.txt", r"vocabulary of modality drugs: .*gone\.txt"),
        ("nowhere", "vocabulary of modality drugs: .*nowhere"),
        ("other", "vocabulary of modality drugs: data set .*other has no vocabulary of 'drugs'; it has who"),
        ("twice.txt", "vocabulary of modality drugs: code 'x' is in the vocabulary twice"),
    ],
)
def test_a_vocabulary_that_is_not_there_is_a_sentence(tmp_path: Path, given: str, sentence: str) -> None:
    (tmp_path / "r.csv").write_text(STAYS)
    (tmp_path / "d.csv").write_text(DRUGS)
    (tmp_path / "twice.txt").write_text("x\nx\n")
    other = {"name": "other", "records": {"file": "r.csv", "key": "id"}}
    other["modalities"] = {"who": {"kind": "codes", "columns": ["sex"]}}  # type: ignore[assignment]
    (tmp_path / "o.yaml").write_text(yaml.safe_dump(other))
    pack(create_source("tables", {"path": str(tmp_path / "o.yaml")}), str(tmp_path / "other"))
    with pytest.raises(ValueError, match=sentence):
        packed(tmp_path, "mine", long(vocabulary=given))
