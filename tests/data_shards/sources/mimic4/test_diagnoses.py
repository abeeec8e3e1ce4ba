"""Diagnoses and phenotypes: how codes are written, what maps to nothing, and zeros that got lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards import create_source, pack
from data_shards.sources.mimic4.diagnoses import MANY, Phenotypes, lost_zeros, read_phenotypes
from tests.data_shards.sources.build import read
from tests.data_shards.sources.mimic4.build import hours_after, lay_tables

IN = "2150-03-01 08:00:00"
FILE = Path("diagnoses_icd.csv")


def written(folder: Path, definitions: str, table: str, **options: Any) -> Phenotypes:
    (folder / "d.yaml").write_text(definitions)
    (folder / "c.csv").write_text("icd10cm,icd9cm\n" + table)
    return read_phenotypes(str(folder / "d.yaml"), str(folder / "c.csv"), **options)


@pytest.mark.parametrize("definitions", ["{codes: ['0389', '03842']}", "{codes: [038.9, ' 038.42 ']}"])
@pytest.mark.parametrize("table", ["A419,0389\nA4151,03842\n", "a41.9,038.9\n A41.51 ,038.42\n"])
@pytest.mark.parametrize("data", [("A419", "A4151", "0389"), ("A41.9", "a41.51 ", "038.9 ")])
def test_codes_are_the_same_with_and_without_dots_blanks_and_case(
    tmp_path: Path, definitions: str, table: str, data: tuple[str, str, str]
) -> None:
    found = written(tmp_path, f"sepsis: {definitions}\n", table)
    versions = ("10", " 10.0", "9")
    assert [found.labels([(code, version)]).tolist() for code, version in zip(data, versions, strict=True)] == [[1]] * 3
    assert found.labels([("0389", "10"), ("A419", "9")]).tolist() == [0], "versions are apart"


def test_the_first_or_every_equivalent_counts(tmp_path: Path) -> None:
    definitions = (
        "a: {codes: ['0389']}\nb: {codes: ['99591']}\nc: {codes: ['0389', '486']}\nd: {use_in_benchmark: no}\n"
    )
    table = "A419,0389\nA419,99591\nA419,99591\nJ189,NoDx\n"
    definitions = definitions.replace("no}", "false, codes: [A419]}")
    assert written(tmp_path, definitions, table).labels([("A419", "10")]).tolist() == [1, 0, 1]
    assert written(tmp_path, definitions, table, several="all").labels([("A419", "10")]).tolist() == [1, 1, 1]
    assert written(tmp_path, definitions, table).icd10 == {"A419": ("0389", "99591")}


def test_what_codes_map_to_is_counted(tmp_path: Path) -> None:
    found = written(tmp_path, "sepsis: {codes: ['0389']}\n", "A419,0389\nI10,4019\nI10,4011\n")
    rows = {
        ("A41.9", "10"): 2,
        ("I10", "10"): 3,
        ("Z999", "10"): 5,
        ("Y999", "10"): 1,
        ("0389", "9"): 7,
        ("486", "9"): 11,
    }
    assert found.count(rows, FILE, False) == Counter(
        {
            "icd10_rows_in_a_phenotype": 2, "icd10_codes_in_a_phenotype": 1,
            "icd10_rows_in_no_phenotype": 3, "icd10_codes_in_no_phenotype": 1,
            "icd10_rows_without_icd9": 6, "icd10_codes_without_icd9": 2,
            "icd9_rows_in_a_phenotype": 7, "icd9_codes_in_a_phenotype": 1,
            "icd9_rows_in_no_phenotype": 11, "icd9_codes_in_no_phenotype": 1,
            "icd10_rows_with_several_icd9": 3,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({("Z999", "10"): 4, ("0389", "9"): 1}, "the table of -o icd10 knows 0 of 4 diagnoses in ICD-10"),
        ({("Z999", "10"): 91, ("A419", "10"): 9}, "the table of -o icd10 knows 9 of 100 diagnoses"),
        ({("486", "9"): 3, ("I10", "10"): 1}, "none of the 3 diagnoses in ICD-9 belongs to a phenotype"),
        ({("0389", "9"): 1, ("I10", "10"): MANY}, "none of the 100 diagnoses in ICD-10 belongs to a phenotype"),
        ({("0389", "11"): 1}, "code '0389' of ICD version '11'; versions are 9 and 10"),
        ({(" ", "9"): 1}, "code ' ' of ICD version '9'"),
    ],
)
def test_tables_that_match_nothing_or_nearly_nothing_are_refused(tmp_path: Path, rows: Any, words: str) -> None:
    found = written(tmp_path, "sepsis: {codes: ['0389']}\n", "A419,0389\nI10,4019\n")
    with pytest.raises(ValueError, match=words):
        found.count(rows, FILE, False)
    assert found.count({("Z999", "10"): 90, ("A419", "10"): 10}, FILE, False)["icd10_rows_without_icd9"] == 90


@pytest.mark.parametrize(
    ("definitions", "table", "words"),
    [
        (
            "[38, '0389']",
            "A419,0389\n",
            r"d.yaml, sepsis: 38 is no code of ICD-9, which has three digits before the dot",
        ),
        ("[38.9]", "A419,0389\n", r"d.yaml, sepsis: 38.9 is no code"),
        ("['0389']", "A419,0389\nA000,10\n", r"c.csv, row 2: 10 is no code of ICD-9"),
        ("['0389']", "A000,1.0\n", r"c.csv, row 1: 1.0 is no code"),
        ("['0389']", "A419,4019.0\n", r"c.csv, row 1: 4019.0 is no code"),
        ("['0389']", "A419,\n", r"c.csv, row 1: icd10cm or icd9cm is empty"),
    ],
)
def test_definitions_and_tables_that_took_codes_for_numbers_are_refused(
    tmp_path: Path, definitions: str, table: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        written(tmp_path, f"sepsis: {{codes: {definitions}}}\n", table)


# 389 means 0389 only, as 389 is no code of the table; 3849 may mean 03849 and 3849; 88 means 0088; 4019 is itself
LOST = {("389", "9"): 2, ("3849", "9"): 3, ("88", "9"): 5, ("4019", "9"): 7, ("A419", "10"): 1}
TABLE = "A419,0389\nA4159,03849\nH9190,3849\nA09,0088\nI10,4019\n"


def test_diagnoses_without_their_zeros_are_told_and_given_back_only_where_one_code_can_be_meant(tmp_path: Path) -> None:
    definitions = "a: {codes: ['0389', '03849']}\nb: {codes: ['0088']}\nc: {codes: ['4019']}\n"
    kept = written(tmp_path, definitions, TABLE)
    notes = kept.count(LOST, FILE, False)
    wanted = {"icd9_rows_too_short": 5, "icd9_rows_with_two_readings": 3, "icd9_rows_zeros_lost": 7}
    assert {name: notes[name] for name in wanted} == wanted
    assert kept.labels(LOST).tolist() == [1, 0, 1] and kept.labels([("389", "9")]).tolist() == [0, 0, 0]
    assert lost_zeros(notes) == (
        "the diagnoses have lost the zeros in front of ICD-9 codes: 7 would get them back with -o icd9_zeros=restore, "
        "3 can mean two codes and are taken as they are written"
    )
    restored = written(tmp_path, definitions, TABLE)
    notes = restored.count(LOST, FILE, True)
    assert notes["icd9_rows_zeros_restored"] == 7 and restored.restored == {"389": "0389", "88": "0088"}
    assert restored.labels([("389", "9")]).tolist() == [1, 0, 0] and restored.labels([("88", "9")]).tolist() == [
        0,
        1,
        0,
    ]
    assert restored.labels([("3849", "9")]).tolist() == [0, 0, 0] and "7 got them back" in str(lost_zeros(notes))


def test_short_numbers_that_may_be_codes_are_left_alone_where_nothing_shows_that_zeros_are_lost(tmp_path: Path) -> None:
    found = written(tmp_path, "a: {codes: ['0389']}\n", TABLE)
    rows = {("389", "9"): 2, ("0389", "9"): 1, ("A419", "10"): 1}
    assert found.count(rows, FILE, True)["icd9_rows_zeros_restored"] == 0 and found.restored == {}
    # Five hundred rows without a single zero in front show it as well
    rows = {("389", "9"): 2, ("4019", "9"): 500, ("A419", "10"): 1}
    assert found.count(rows, FILE, True)["icd9_rows_zeros_restored"] == 2
    assert lost_zeros({}) is None


def test_diagnoses_of_the_stays_admissions_reach_labels_and_report(tmp_path: Path) -> None:
    stays = [("p", "a", "1", IN, hours_after(IN, 60)), ("p", "b", "2", hours_after(IN, 90), hours_after(IN, 99))]
    rows = [
        ("p", "a", "A41.9", 10), ("p", "a", "", 10), ("p", "b", " 0389", "9"), ("p", "b", "X", "10"),
        ("p", "c", "0389", 9), ("q", "d", "0389", 9),
    ]  # fmt: skip
    lay_tables(
        tmp_path,
        patients=("subject_id,gender,anchor_age,anchor_year", [("p", "F", 50, 2150)]),
        admissions=("hadm_id,deathtime,hospital_expire_flag", [("a", "", 0), ("b", "", 0)]),
        icustays=("subject_id,hadm_id,stay_id,intime,outtime", stays),
        diagnoses=("subject_id,hadm_id,icd_code,icd_version", rows),
    )
    written(tmp_path, "a: {codes: ['0389']}\nb: {codes: ['486']}\n", "A419,0389\n")
    options = {
        "path": str(tmp_path), "task": "phenotypes", "definitions": str(tmp_path / "d.yaml"),
        "icd10": str(tmp_path / "c.csv"), "history": False,
    }  # fmt: skip
    records, _ = read("mimic4", options)
    labels = {key: np.asarray(record.targets["phenotypes"]).tolist() for key, record in records.items()}
    assert labels == {"stay-1": [1, 0], "stay-2": [1, 0]}
    notes = pack(create_source("mimic4", options), str(tmp_path / "out"), workers=2)["source"]["notes"]
    counted = {
        "diagnoses_rows": 6, "diagnoses_of_other_patients": 1, "diagnoses_of_other_admissions": 1,
        "diagnoses_without_code": 1, "icd9_rows_in_a_phenotype": 1, "icd10_rows_in_a_phenotype": 1,
        "icd10_rows_without_icd9": 1, "icd10_codes_without_icd9": 1,
    }  # fmt: skip
    assert {name: notes[name] for name in counted} == counted
    # The option reaches the labels, and the sentence the report
    file = tmp_path / "hosp/diagnoses_icd.csv"
    file.write_text(file.read_text().replace("0389", "389").replace("X", "A419") + "p,b,88,9\n")
    for zeros, label in (("keep", 0), ("restore", 1)):
        (tmp_path / "hosp/diagnoses_icd.csv").write_text(file.read_text().replace("p,b,A419,10\n", ""))
        report = pack(create_source("mimic4", {**options, "icd9_zeros": zeros}), str(tmp_path / zeros))
        records, _ = read("mimic4", {**options, "icd9_zeros": zeros})
        assert np.asarray(records["stay-2"].targets["phenotypes"]).tolist() == [label, 0]
        assert ("1 got them back" in report["source"]["icd9"]) == bool(label)
