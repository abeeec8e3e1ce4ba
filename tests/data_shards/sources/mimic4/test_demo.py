"""The MIMIC-IV demo, packed: every value of every stay against pandas' reading of the official tables.

What pandas does here is written without the source: joins and comparisons on whole tables.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from data_shards import Codes, Record, Series, create_source, open_manifest, pack
from data_shards.sources.base import hashed_part
from data_shards.sources.mimic4.cohort import read_cohort, with_parts
from data_shards.sources.mimic4.diagnoses import read_phenotypes
from data_shards.sources.mimic4.items import LABS, VITALS
from data_shards.sources.part_lists import read_part_list
from tests.data_shards.sources.build import packed_records, read, real_data

pytestmark = pytest.mark.slow
SHARES = (("train", 0.7), ("val", 0.15), ("test", 0.15))
# Four of the 25 phenotypes, by their codes in the definitions of the MIMIC benchmarks
DEFINITIONS = {
    "Septicemia": ["0380", "03842", "0389", "78552", "99591", "99592"],
    "Acute renal failure": ["5845", "5848", "5849"],
    "Congestive heart failure": ["39891", "4280", "4281", "42820", "42822", "42823", "42830", "42832", "42833", "4289"],
    "Chronic kidney disease": ["40390", "40391", "5853", "5856", "5859"],
}


def text_table(path: Path, dates: list[str], numbers: list[str] | None = None) -> pd.DataFrame:
    """A table with everything as text but dates and numbers."""
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    for name in dates:
        frame[name] = pd.to_datetime(frame[name].replace("", None))
    for name in numbers or []:
        frame[name] = pd.to_numeric(frame[name].replace("", None))
    return frame


def all_stays(folder: Path) -> pd.DataFrame:
    """One row a stay: times, age at the stay, outcomes."""
    stays = text_table(folder / "icu/icustays.csv.gz", ["intime", "outtime"])
    people = text_table(folder / "hosp/patients.csv.gz", [], ["anchor_age", "anchor_year"])
    ends = text_table(folder / "hosp/admissions.csv.gz", ["deathtime"], ["hospital_expire_flag"])
    own = stays.merge(people[["subject_id", "gender", "anchor_age", "anchor_year"]], on="subject_id", how="left")
    own = own.merge(ends[["hadm_id", "deathtime", "hospital_expire_flag"]], on="hadm_id", how="left")
    own["age"] = own.anchor_age + own.intime.dt.year - own.anchor_year
    own["hours"] = (own.outtime - own.intime) / pd.Timedelta(hours=1)
    return own.set_index("stay_id", drop=False)


def events(folder: Path, table: str, variables: Any, stays: pd.DataFrame, longest: float) -> pd.DataFrame:
    """stay_id, hours since intime, variable, value: of the patient, in the window, plausible, in Celsius."""
    items = pd.DataFrame(
        [(item, name, low, high) for name, (own, low, high) in variables.items() for item in own],
        columns=["itemid", "variable", "low", "high"],
    )
    rows = text_table(folder / table, ["charttime"], ["itemid", "valuenum"]).merge(items, on="itemid")
    warm = rows.itemid == 223761
    rows.loc[warm, "valuenum"] = (rows.loc[warm, "valuenum"] - 32) / 1.8
    rows = rows[(rows.valuenum >= rows.low) & (rows.valuenum <= rows.high)]
    columns = stays[["subject_id", "intime", "outtime"]].reset_index()
    rows = rows.drop(columns="stay_id", errors="ignore").merge(columns, on="subject_id")
    rows["time"] = (rows.charttime - rows.intime) / pd.Timedelta(hours=1)
    return rows[(rows.time >= 0) & (rows.time <= longest) & (rows.charttime <= rows.outtime)]


def assert_series(records: dict[str, Record], name: str, variables: Any, expected: pd.DataFrame) -> int:
    """Every stay's events are those, no more and no less; returns how many there are."""
    order = list(variables)
    by_stay = dict(list(expected.groupby("stay_id")))
    assert {key for key, record in records.items() if name in record.values} == {f"stay-{stay}" for stay in by_stay}
    for stay, rows in by_stay.items():
        found = records[f"stay-{stay}"].values[name]
        assert isinstance(found, Series)
        wanted = np.stack([rows.variable.map(order.index), rows.time.astype("f4"), rows.valuenum.astype("f4")])
        packed = np.stack([found.channels_O, found.times_O, found.values_O]).astype(np.float64)
        wanted, packed = (table[:, np.lexsort(table[::-1])] for table in (wanted.astype(np.float64), packed))
        np.testing.assert_array_equal(packed, wanted, err_msg=f"stay {stay}, {name}")
    return len(expected)


def assert_static_and_parts(records: dict[str, Record], stays: pd.DataFrame) -> None:
    assert records.keys() == {f"stay-{stay}" for stay in stays.index}
    for stay, row in stays.iterrows():
        record = records[f"stay-{stay}"]
        assert np.asarray(record.values["static"]).tolist() == [row.age, row.gender == "M"]
        assert record.splits == {"default": hashed_part(row.subject_id, SHARES)} and record.group == row.subject_id


def assert_history(records: dict[str, Record], folder: Path, stays: pd.DataFrame, having: int, total: int) -> None:
    """The diagnoses of each stay's earlier admissions, without those of its own."""
    ends = text_table(folder / "hosp/admissions.csv.gz", ["dischtime"])[["subject_id", "hadm_id", "dischtime"]]
    rows = text_table(folder / "hosp/diagnoses_icd.csv.gz", []).merge(ends, on=["subject_id", "hadm_id"])
    rows["code"] = "dx" + rows.icd_version + "=" + rows.icd_code
    pairs = stays[["subject_id", "stay_id", "hadm_id", "intime"]].reset_index(drop=True).merge(
        rows[["subject_id", "hadm_id", "dischtime", "code"]], on="subject_id", suffixes=("", "_then")
    )  # fmt: skip
    pairs = pairs[(pairs.dischtime <= pairs.intime) & (pairs.hadm_id != pairs.hadm_id_then)]
    wanted = {f"stay-{stay}": sorted(set(own)) for stay, own in pairs.groupby("stay_id").code}
    packed = {key: record.values["history"] for key, record in records.items() if "history" in record.values}
    assert {key: sorted(value.codes) for key, value in packed.items() if isinstance(value, Codes)} == wanted
    assert (len(wanted), sum(map(len, wanted.values()))) == (having, total)


def test_the_48_hour_tasks(tmp_path: Path) -> None:
    folder = real_data("data/mimic_iv_demo")
    report = pack(create_source("mimic4", {"path": str(folder)}), str(tmp_path / "out"), workers=1)
    everyone = all_stays(folder)
    stays = everyone[(everyone.hours >= 48) & ~(everyone.deathtime < everyone.intime + pd.Timedelta(hours=48))]
    assert (len(everyone), len(stays), report["records"]) == (140, 74, 74)
    assert ((stays.age != stays.anchor_age).sum(), (stays.age - stays.anchor_age).max()) == (26, 7)
    records = packed_records(tmp_path / "out")
    assert_static_and_parts(records, stays)
    vitals = events(folder, "icu/chartevents.csv.gz", VITALS, stays, 48)
    labs = events(folder, "hosp/labevents.csv.gz", LABS, stays, 48)
    observed = assert_series(records, "vitals", VITALS, vitals) + assert_series(records, "labs", LABS, labs)
    assert observed == report["observations"] == 37_474
    assert_history(read("mimic4", {"path": str(folder)})[0], folder, stays, 32, 1_204)
    died = stays.hospital_expire_flag == 1
    left = (stays.hours < 96) & ~died
    found = {
        key: tuple(float(record.targets[task][0]) for task in ("ihm_48", "los_48")) for key, record in records.items()
    }
    assert found == {f"stay-{stay}": (float(died[stay]), float(left[stay])) for stay in stays.index}
    assert (died.sum(), left.sum()) == (12, 31)
    notes = report["source"]["notes"]
    assert report["source"]["left_out"] == "66 of 140 stays left out: 66 shorter than the window"
    assert (notes["stays_in_icustays"], notes["stays_packed"], notes["stays_too_short"]) == (140, 74, 66)
    # One patient left the unit after 70 hours and died on a ward three weeks later
    patients = read_cohort(folder, 48).patients
    unit = {f"stay-{stay.stay}" for own in patients for stay in own if stay.left_alive("unit")}
    assert unit - {key for key, (_, label) in found.items() if label} == {"stay-34577403"}


def test_phenotypes(tmp_path: Path) -> None:
    folder, crosswalk = real_data("data/mimic_iv_demo"), real_data("cases/icd10_dotted") / "icd10_dotted.csv"
    options = {"path": str(folder), "task": "phenotypes", "icd10": str(crosswalk), "definitions": definitions(tmp_path)}
    report = pack(create_source("mimic4", options), str(tmp_path / "out"), workers=1)
    records, stays = packed_records(tmp_path / "out"), all_stays(folder)
    assert len(stays) == report["records"] == 140
    assert_static_and_parts(records, stays)
    vitals = events(folder, "icu/chartevents.csv.gz", VITALS, stays, 240)
    assert len(vitals) == assert_series(records, "vitals", VITALS, vitals)
    labs = events(folder, "hosp/labevents.csv.gz", LABS, stays, 240)
    assert len(labs) == assert_series(records, "labs", LABS, labs)
    labels = phenotype_labels(folder, crosswalk, stays, False)
    names = open_manifest(str(tmp_path / "out")).schema.tasks[0].classes
    for stay in stays.index:
        found = dict(zip(names, np.asarray(records[f"stay-{stay}"].targets["phenotypes"]).tolist(), strict=True))
        assert found == labels.loc[stay].to_dict(), f"stay {stay}"
    assert int(labels.to_numpy().sum()) == 133
    assert_diagnoses_counted(report["source"], folder, crosswalk, stays)


@pytest.mark.parametrize(("several", "total"), [("first", 133), ("all", 134)])
@pytest.mark.parametrize("table", ["icd10_dotted.csv", "icd9_as_numbers.csv"])
def test_labels_are_the_same_with_and_without_dots(tmp_path: Path, table: str, several: Any, total: int) -> None:
    folder, crosswalk = real_data("data/mimic_iv_demo"), real_data("cases/icd10_dotted") / table
    found = read_phenotypes(definitions(tmp_path), str(crosswalk), several)
    stays, rows = all_stays(folder), pd.read_csv(folder / "hosp/diagnoses_icd.csv.gz", dtype=str)
    codes = {hadm: list(zip(own.icd_code, own.icd_version, strict=True)) for hadm, own in rows.groupby("hadm_id")}
    expected = phenotype_labels(folder, crosswalk, stays, several == "all")
    for stay, row in stays.iterrows():
        own = dict(zip(found.names, found.labels(codes.get(row.hadm_id, [])).tolist(), strict=True))
        assert own == expected.loc[stay].to_dict(), f"stay {stay}"
    assert int(expected.to_numpy().sum()) == total


def definitions(folder: Path) -> str:
    file = folder / "definitions.yaml"
    file.write_text(yaml.safe_dump({name: {"codes": codes} for name, codes in DEFINITIONS.items()}))
    return str(file)


def phenotype_labels(folder: Path, crosswalk: Path, stays: pd.DataFrame, every: bool) -> pd.DataFrame:
    """Stay x phenotype, 0 or 1; codes as the table says, without dots."""
    table = pd.read_csv(crosswalk, dtype=str).map(lambda code: code.replace(".", ""))
    table = table if every else table.drop_duplicates("icd10cm")
    rows = pd.read_csv(folder / "hosp/diagnoses_icd.csv.gz", dtype=str)
    old = rows[rows.icd_version == "9"].assign(icd9cm=lambda own: own.icd_code)
    new = rows[rows.icd_version == "10"].merge(table, left_on="icd_code", right_on="icd10cm")
    codes = pd.concat([old, new]).groupby("hadm_id").icd9cm.agg(set)
    own = stays.hadm_id.map(codes).map(lambda found: found if isinstance(found, set) else set())
    return pd.DataFrame(
        {
            name: own.map(lambda found, wanted=set(codes): float(bool(found & wanted)))
            for name, codes in DEFINITIONS.items()
        }
    )


def assert_diagnoses_counted(source: dict[str, Any], folder: Path, crosswalk: Path, stays: pd.DataFrame) -> None:
    rows = pd.read_csv(folder / "hosp/diagnoses_icd.csv.gz", dtype=str)
    notes, own = source["notes"], rows[rows.hadm_id.isin(stays.hadm_id)]
    known = set(pd.read_csv(crosswalk, dtype=str).icd10cm.str.replace(".", ""))
    unknown = own[(own.icd_version == "10") & ~own.icd_code.isin(known)]
    assert (notes["icd10_rows_without_icd9"], notes["icd10_codes_without_icd9"]) == (139, 80)
    assert (len(unknown), unknown.icd_code.nunique()) == (139, 80)
    counted = [f"icd{n}_rows_{what}" for n in (9, 10) for what in ("in_a_phenotype", "in_no_phenotype", "without_icd9")]
    assert sum(notes.get(name, 0) for name in counted) == len(own)
    assert len(rows) == notes["diagnoses_rows"] == len(own) + notes["diagnoses_of_other_admissions"]
    # This publication of the demo has lost the zeros: no code of ICD-9 begins with one
    assert not own[own.icd_version == "9"].icd_code.str.startswith("0").any()
    assert source["icd9"].startswith(
        "the diagnoses have lost the zeros in front of ICD-9 codes: 23 would get them back"
    )


def test_zeros_that_the_demo_has_lost_are_given_back_on_request(tmp_path: Path) -> None:
    folder, crosswalk = real_data("data/mimic_iv_demo"), real_data("cases/icd10_dotted") / "icd9_as_numbers.csv"
    rows = pd.read_csv(folder / "hosp/diagnoses_icd.csv.gz", dtype=str)
    counts = {(code, version): len(own) for (code, version), own in rows.groupby(["icd_code", "icd_version"])}
    found = read_phenotypes(definitions(tmp_path), str(crosswalk))
    notes = found.count(counts, folder, True)
    # 389 is no code of its own and 0389 is: sepsis. 3849 is one (an ear), as is 03849: nobody can tell
    assert {found.restored[code] for code in ("389", "380", "3842")} == {"0389", "0380", "03842"}
    assert "3849" not in found.restored and all(new.lstrip("0") == old for old, new in found.restored.items())
    old = rows[rows.icd_version == "9"]
    assert notes["icd9_rows_zeros_restored"] == old.icd_code.isin(list(found.restored)).sum() == 42
    assert notes["icd9_rows_too_short"] == (old.icd_code.str.len() < 3).sum() == 3


def test_a_list_of_test_patients(tmp_path: Path) -> None:
    folder = real_data("data/mimic_iv_demo")
    everyone = all_stays(folder)
    listed, there = set(sorted(everyone.subject_id.unique())[::5]), set(everyone[everyone.hours >= 48].subject_id)
    (tmp_path / "test.csv").write_text("subject_id\n" + "\n".join([*sorted(listed), "99999999"]) + "\n")
    cohort = read_cohort(folder, 48)
    patients = with_parts(cohort, read_part_list(tmp_path / "test.csv", ["stay_id", "subject_id"]))
    parts = {stay.subject: stay.parts["default"] for own in patients for stay in own}
    assert {patient for patient, part in parts.items() if part == "test"} == listed & there
    assert set(parts) == there and set(parts.values()) == {"train", "val", "test"}
    # Those without a stay of 48 hours, and the one nobody knows
    assert cohort.counts["split_ids_not_packed"] == len(listed - there) + 1
