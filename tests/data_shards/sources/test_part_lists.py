"""Lists of parts: by stay, by patient, of the test part alone, and what in them is refused or counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_shards import create_source, pack
from data_shards.sources.base import hashed_part
from data_shards.sources.part_lists import read_part_list
from tests.data_shards.sources.build import read
from tests.data_shards.sources.mimic4.build import hours_after, lay_tables
from tests.data_shards.sources.test_sources import lay_out

IN = "2150-03-01 08:00:00"
KEYS = ["stay_id", "subject_id"]


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_column_of_ids_and_one_of_each_split(tmp_path: Path) -> None:
    file = written(
        tmp_path / "s.csv", "\ufeffsubject_id, stay_id,one,two\n7,1,train,\n7, 2.0 ,val,test\n\n8,3,,\n8,3,,\n"
    )
    found = read_part_list(file, KEYS)
    assert (found.key, found.splits, found.tests_only, found.twice) == ("stay_id", ("one", "two"), False, 1)
    assert found.parts == {"1": {"one": "train"}, "2": {"one": "val", "two": "test"}, "3": {}}


def test_a_column_of_ids_alone_and_the_benchmarks_file_list_the_test_part(tmp_path: Path) -> None:
    found = read_part_list(written(tmp_path / "s.csv", "subject_id\n7\n8\n"), KEYS)
    assert (found.key, found.splits, found.tests_only) == ("subject_id", ("default",), True)
    assert found.parts == {"7": {"default": "test"}, "8": {"default": "test"}}
    found = read_part_list(written(tmp_path / "testset.csv", "7,1\n8,0\n9,1\n"), KEYS)
    assert (found.key, found.tests_only, sorted(found.parts)) == ("subject_id", True, ["7", "9"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("patient,part\n7,train\n", "has no column stay_id or subject_id; its columns are patient, part"),
        ("", "has no column stay_id or subject_id; its columns are none"),
        ("stay_id,a,a\n7,train,val\n", "has two columns of one name"),
        ("stay_id,a\n7,train\n7,val\n", "row 3: stay_id 7 has other parts in an earlier row"),
        ("stay_id,a\n7,Validation\n", "row 2: no command uses a part named 'Validation'; it should be called 'val'"),
        ("stay_id,a\n7,part one\n", "row 2: 'part one' cannot be a part's name"),
        ("stay_id,a\n7\n", "row 2: 1 cells, and the first row has 2"),
        ("stay_id,a\n", "lists no stay_id"),
    ],
)
def test_lists_that_make_no_sense(tmp_path: Path, text: str, words: str) -> None:
    file = written(tmp_path / "s.csv", text)
    with pytest.raises(ValueError, match=f"splits file {file}.*{words}"):
        read_part_list(file, KEYS)


def lay_patients(folder: Path) -> Path:
    """Ten patients with a stay of 60 hours each, the first with two."""
    stays = [(f"{n}", f"a{n}", f"1{n}", IN, hours_after(IN, 60)) for n in range(10)]
    stays.append(("0", "a0", "20", hours_after(IN, 80), hours_after(IN, 160)))
    return lay_tables(
        folder,
        patients=("subject_id,gender,anchor_age,anchor_year", [(n, "F", 50, 2150) for n in range(10)]),
        admissions=("hadm_id,deathtime,hospital_expire_flag", [(f"a{n}", "", 0) for n in range(10)]),
        icustays=("subject_id,hadm_id,stay_id,intime,outtime", stays),
    )


def test_stays_take_the_parts_of_a_list_of_stays(tmp_path: Path) -> None:
    text = "stay_id,default,fold\n10,train,train\n20,test,\n11,val,train\n99,test,train\n11,val,train\n"
    options = {"path": str(lay_patients(tmp_path)), "splits": str(written(tmp_path / "s.csv", text))}
    records, _ = read("mimic4", options)
    assert {key: record.splits for key, record in records.items() if record.splits} == {
        "stay-10": {"default": "train", "fold": "train"}, "stay-20": {"default": "test"},
        "stay-11": {"default": "val", "fold": "train"},
    }  # fmt: skip
    report = pack(create_source("mimic4", options), str(tmp_path / "out"), workers=2)
    assert report["splits"] == {"default": {"test": 1, "train": 1, "val": 1}, "fold": {"train": 2}}
    notes, counted = report["source"]["notes"], {
        "stays_without_part.default": 8, "stays_without_part.fold": 9, "patients_in_several_parts.default": 1,
        "split_ids_not_packed": 1, "split_ids_twice": 1,
    }  # fmt: skip
    assert {name: notes[name] for name in counted} == counted and report["source"]["splits"] == "s.csv"


def test_patients_of_a_list_are_the_test_part_and_the_others_are_hashed(tmp_path: Path) -> None:
    options = {"path": str(lay_patients(tmp_path)), "splits": str(written(tmp_path / "testset.csv", "0,1\n3,1\n5,0\n"))}
    records, _ = read("mimic4", options)
    hashed = {f"{n}": hashed_part(f"{n}", (("train", 70 / 85), ("val", 15 / 85))) for n in range(10)}
    assert {r.group: r.splits["default"] for r in records.values()} == {**hashed, "0": "test", "3": "test"}
    assert records["stay-20"].splits == {"default": "test"} and "val" in hashed.values()
    options["splits"] = str(written(tmp_path / "none.csv", "subject_id\nx\n"))
    with pytest.raises(ValueError, match=r"none\.csv lists none of the stays; is subject_id its column of ids"):
        read("mimic4", options)


def test_lists_of_physionet_2012(tmp_path: Path) -> None:
    lay_out(tmp_path, True)
    text = "RecordID,s1,s2\n100001,train,test\n100002,val,\n200001,test,train\n999999,test,test\n100003,,\n"
    options = {"path": str(tmp_path), "splits": str(written(tmp_path / "s.csv", text))}
    notes = pack(create_source("physionet2012", options), str(tmp_path / "out"))["source"]["notes"]
    assert (notes["stays_without_part.s2"], notes["split_ids_unknown"]) == (1, 1)
    written(tmp_path / "s.csv", "RecordID\n100002\n")
    records, _ = read("physionet2012", options)
    assert records["100002"].splits == {"default": "test"}
    assert {records[key].splits["default"] for key in ("100001", "200001")} <= {"train", "val"}
    written(tmp_path / "s.csv", text + "100001,val,test\n")
    with pytest.raises(ValueError, match=r"row 7: RecordID 100001 has other parts in an earlier row"):
        create_source("physionet2012", options)
