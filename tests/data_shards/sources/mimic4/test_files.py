"""MIMIC-IV in its official layout, written here: what arrives of each table, and what a folder lacks."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data_shards import Codes, Objects, Series, create_source, open_manifest, pack
from data_shards.records.record import Value
from data_shards.sources.mimic4.recordings import read_ecg
from tests.data_shards.sources.build import packed_records, read
from tests.data_shards.sources.mimic4.build import lay_mimic, table


def hours(start: str, *times: str) -> list[float]:
    """Hours from a moment to others, as float32."""
    own = (np.array(times, "M8[ms]") - np.datetime64(start)) / np.timedelta64(3600, "s")
    return own.astype(np.float32).tolist()


def objects(value: Value) -> tuple[list[float], list[Any]]:
    assert isinstance(value, Objects)
    return value.times_N.tolist(), list(value.values)


def codes(value: Value) -> list[tuple[float, str]]:
    assert isinstance(value, Codes) and value.times_O is not None and value.values_O is None
    return sorted(zip(value.times_O.tolist(), value.codes, strict=True))


def test_mimic_stays_are_matched_by_patient_and_time(tmp_path: Path) -> None:
    records, notes = read("mimic4", {"path": str(lay_mimic(tmp_path / "mimic"))})
    assert set(records) == {"stay-30000001", "stay-30000002"}
    one, two = records["stay-30000001"], records["stay-30000002"]
    assert set(one.values) == {"vitals", "labs", "notes", "cxr", "ecg", "drugs", "procedures", "static"}
    assert set(two.values) == {"vitals", "history", "static"}
    vitals = one.values["vitals"]
    assert isinstance(vitals, Series)
    rows = zip(vitals.times_O.tolist(), vitals.channels_O.tolist(), vitals.values_O.tolist(), strict=True)
    assert sorted(rows) == [(1.0, 0, 80.0), (2.0, 6, pytest.approx(37.0)), (3.0, 6, pytest.approx(36.5))]
    labs = one.values["labs"]
    assert isinstance(labs, Series) and labs.times_O.tolist() == [16.0] and labs.channels_O.tolist() == [1]
    assert np.asarray(one.values["static"]).tolist() == [52, 0]
    assert one.targets == {"ihm_48": 0.0, "los_48": 1.0}  # left alive after 68 hours
    assert two.targets == {"ihm_48": 1.0, "los_48": 0.0}
    assert one.splits == two.splits and one.group == two.group == "10000032"
    assert two.values["static"].tolist() == [53, 0], "a year after anchor_year"
    assert notes == {
        "stays_packed": 2, "stays_without_observation": 1,
        "observations": 5, "vitals_observations": 4, "labs_observations": 1,
        "implausible_vitals": 1, "vitals_converted": 1, "vitals_outside": 2,
        "notes_objects": 3, "notes_outside": 2, "notes_without_storetime": 1,
        "cxr_objects": 2, "cxr_not_frontal": 1, "cxr_outside": 1, "ecg_objects": 2, "ecg_outside": 1, "ecg_gaps": 2,
        "emar_codes": 2, "emar_not_given": 1, "emar_outside": 1, "emar_without_code": 1,
        "inputevents_codes": 1, "inputevents_outside": 1, "prescriptions_codes": 1, "procedureevents_codes": 1,
        "diagnoses_icd_codes": 2, "diagnoses_icd_outside": 1, "procedures_icd_codes": 1,
        "procedures_icd_without_code": 1,
    }  # fmt: skip


def test_every_report_picture_and_ecg_of_the_window_is_there_at_its_time(tmp_path: Path) -> None:
    folder, start = lay_mimic(tmp_path / "mimic"), "2180-07-23T14:00:00"
    records, _ = read("mimic4", {"path": str(folder)})
    one = records["stay-30000001"].values
    times, texts = objects(one["notes"])  # a report counts from when it was stored
    assert times == hours(start, "2180-07-24T02:00", "2180-07-24T00:30", "2180-07-24T03:00")
    assert texts == ['LATER, "quoted"\nlines', "EARLIER", "NEVER STORED"]
    times, pictures = objects(one["cxr"])
    assert times == hours(start, "2180-07-24T09:30:14.500", "2180-07-24T21:30:14.531")
    assert [picture.shape for picture in pictures] == [(1, 64, 64)] * 2
    assert [round(float(picture.mean())) for picture in pictures] == [90, 200]
    times, ecgs = objects(one["ecg"])
    assert times == hours(start, "2180-07-23T20:44", "2180-07-24T08:00")
    in_order = np.array([0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11])  # aVL before aVF
    for ecg, first in zip(ecgs, (100, 300), strict=True):  # also where a sample had no value
        np.testing.assert_allclose(ecg, np.tile((in_order + first) / 200, (10, 1)), rtol=1e-6)
    charted, notes = read("mimic4", {"path": str(folder), "notes_at": "charttime"})
    times, texts = objects(charted["stay-30000001"].values["notes"])
    assert times == hours(start, "2180-07-24T01:00", "2180-07-23T23:00", "2180-07-25T13:30", "2180-07-24T03:00")
    assert texts[2] == "WRITTEN TOO LATE" and notes["notes_outside"] == 1


def test_the_newest_so_many_are_kept_and_the_side_of_pictures_is_chosen(tmp_path: Path) -> None:
    options = {
        "path": str(lay_mimic(tmp_path / "mimic")),
        "max_notes": 2,
        "max_cxr": 1,
        "max_ecg": 1,
        "image_side": 224,
    }
    source = create_source("mimic4", options)
    assert {spec.name: spec.max_objects for spec in source.schema.modalities if spec.has_objects} == {
        "notes": 2, "cxr": 1, "ecg": 1,
    }  # fmt: skip
    report = pack(source, str(tmp_path / "out"))
    one = packed_records(tmp_path / "out")["stay-30000001"].values
    assert objects(one["notes"]) == ([12.0, 13.0], ['LATER, "quoted"\nlines', "NEVER STORED"])
    (_, [picture]), (_, [ecg]) = objects(one["cxr"]), objects(one["ecg"])
    assert (picture.shape, round(float(picture.mean())), ecg[0, 0]) == ((1, 224, 224), 200, np.float32(1.5))
    assert {name: count for name, count in report["source"]["notes"].items() if name.startswith("older")} == {
        f"older_objects_left_out.{name}": 1 for name in ("notes", "cxr", "ecg")
    }


def test_codes_are_what_was_known_then(tmp_path: Path) -> None:
    folder = lay_mimic(tmp_path / "mimic")
    records, _ = read("mimic4", {"path": str(folder)})
    one, two = records["stay-30000001"].values, records["stay-30000002"].values
    assert codes(one["drugs"]) == [
        (1.0, "emar=Heparin"), (4.0, "order=Aspirin"), (24.0, "input=221906 Norepinephrine"),
        (float(np.float32(47 + 59 / 60)), "emar=Heparin"),
    ]  # fmt: skip
    assert codes(one["procedures"]) == [(6.0, "procedure=225792 Invasive Ventilation")]
    # Of the admission that had ended half a year before; nothing of either stay's own
    past = two["history"]
    assert isinstance(past, Codes) and past.times_O is None
    assert past.codes == ["dx10=I2101", "dx9=5723", "pr10=0W9G3ZZ"] and "history" not in one
    given, _ = read("mimic4", {"path": str(folder), "drugs": "given", "history": False})
    assert [code for _, code in codes(given["stay-30000001"].values["drugs"])] == [
        "emar=Heparin", "input=221906 Norepinephrine", "emar=Heparin",
    ]  # fmt: skip
    assert "history" not in given["stay-30000002"].values
    source = create_source("mimic4", {"path": str(folder), "drugs": "none", "procedures": False})
    assert not {"drugs", "procedures"} & set(source.schema.modality_names)


def test_an_admission_that_ends_after_the_stay_begins_is_no_history(tmp_path: Path) -> None:
    folder = lay_mimic(tmp_path / "mimic")
    file = folder / "hosp/admissions.csv.gz"
    text = gzip.decompress(file.read_bytes()).decode()
    later = text.replace(
        "10000032,20000001,2180-07-23 14:00:00,2180-07-26 10:00:00", "10000032,20000001,,2181-01-01 00:00:01"
    )
    assert later != text
    file.write_bytes(gzip.compress(later.encode()))
    records, _ = read("mimic4", {"path": str(folder)})
    assert "history" not in records["stay-30000002"].values
    file.write_bytes(gzip.compress(later.replace("2181-01-01 00:00:01", "2181-01-01 00:00:00").encode()))
    records, _ = read("mimic4", {"path": str(folder)})
    assert "history" in records["stay-30000002"].values
    # Its own admission, which a slip of the pen ends before the stay begins, is none either
    own = "10000032,20000002,2181-01-01 00:00:00,2181-01-10 00:00:00"
    assert own in later
    file.write_bytes(gzip.compress(later.replace(own, own.replace("2181-01-10", "2181-01-01")).encode()))
    records, _ = read("mimic4", {"path": str(folder)})
    assert "history" not in records["stay-30000002"].values


def test_the_labels_diagnoses_never_are_an_input(tmp_path: Path) -> None:
    """Of each stay the codes of its own admission are in no modality; the vocabulary is of what is there."""
    definitions, icd10 = tmp_path / "ccs.yaml", tmp_path / "icd10.csv"
    definitions.write_text("Portal hypertension: {codes: ['5723']}\n")
    icd10.write_text("icd10cm,icd9cm\nI2101,41011\n")
    options = {
        "path": str(lay_mimic(tmp_path / "mimic")), "task": "phenotypes", "definitions": str(definitions),
        "icd10": str(icd10),
    }  # fmt: skip
    pack(create_source("mimic4", options), str(tmp_path / "out"), workers=1)
    records = packed_records(tmp_path / "out")
    assert np.asarray(records["stay-30000001"].targets["phenotypes"]).tolist() == [1]
    own = {"stay-30000001": {"dx9=5723", "dx10=I2101", "pr10=0W9G3ZZ"}, "stay-30000002": {"dx9=0389"}}
    for key, labels in own.items():
        held = {code for value in records[key].values.values() if isinstance(value, Codes) for code in value.codes}
        assert not held & labels, key
    manifest = open_manifest(str(tmp_path / "out"))
    assert set(manifest.vocabulary("procedures").names) == {"procedure=225792 Invasive Ventilation"}


def test_mimic_without_notes_pictures_and_ecgs_and_with_phenotypes(tmp_path: Path) -> None:
    plain = create_source("mimic4", {"path": str(lay_mimic(tmp_path / "plain", optional=False))})
    assert plain.schema.modality_names == ("vitals", "labs", "static")
    definitions, icd10 = tmp_path / "ccs.yaml", tmp_path / "icd10cmtoicd9gem.csv"
    groups = {
        "Septicemia": {"use_in_benchmark": True, "codes": ["0389", "0380"]},
        "Acute myocardial infarction": {"use_in_benchmark": True, "codes": ["41011"]},
        "Portal hypertension": {"use_in_benchmark": True, "codes": ["5723"]},
        "Unused": {"use_in_benchmark": False, "codes": ["I2101"]},
    }
    definitions.write_text(yaml.safe_dump(groups))
    table(icd10, "icd10cm,icd9cm,flags", [("I2101", "41011", "10000"), ("I2101", "0389", "10000")])
    folder = lay_mimic(tmp_path / "mimic")
    options = {"path": str(folder), "task": "phenotypes", "definitions": str(definitions), "icd10": str(icd10)}
    records, _ = read("mimic4", options)
    assert set(records) == {
        "stay-30000001",
        "stay-30000002",
        "stay-30000003",
    }  # short stays count, never measured do not
    assert np.asarray(records["stay-30000001"].targets["phenotypes"]).tolist() == [1, 1, 0]
    assert np.asarray(records["stay-30000002"].targets["phenotypes"]).tolist() == [0, 0, 1]
    vitals = records["stay-30000001"].values["vitals"]
    assert isinstance(vitals, Series) and vitals.times_O.max() == 49.0  # the whole stay
    report = pack(create_source("mimic4", options), str(tmp_path / "out"), workers=2)
    assert report["records"] == 3


def test_mimic_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"hosp/patients.csv \(or .csv.gz\) does not exist; is"):
        create_source("mimic4", {"path": str(tmp_path)})
    folder = lay_mimic(tmp_path / "mimic")
    with pytest.raises(ValueError, match="task=phenotypes needs -o definitions=FILE"):
        create_source("mimic4", {"path": str(folder), "task": "phenotypes"})
    (folder / "cxr/files/p10/p10000032/s50414268/bbb.jpg").unlink()
    with pytest.raises(ValueError, match=r"bbb\.jpg cannot be read.*leave such X-rays out with -o cxr_unusable=drop"):
        read("mimic4", {"path": str(folder)})
    records, notes = read("mimic4", {"path": str(folder), "cxr_unusable": "drop"})
    assert len(objects(records["stay-30000001"].values["cxr"])[0]) == 1
    assert (notes["cxr_objects"], notes["cxr_unusable"]) == (1, 1)
    with pytest.raises(ValueError, match="cannot be read"):
        read_ecg(folder / "ecg/none", 5)
