"""MIMIC-IV in its official layout, written here: what arrives of each table, and what a folder lacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from data_shards import Series, create_source, pack
from data_shards.sources.mimic4.recordings import read_ecg
from tests.data_shards.sources.build import read
from tests.data_shards.sources.mimic4.build import lay_mimic, table


def test_mimic_stays_are_matched_by_patient_and_time(tmp_path: Path) -> None:
    records, notes = read("mimic4", {"path": str(lay_mimic(tmp_path / "mimic"))})
    assert set(records) == {"stay-30000001", "stay-30000002"}
    one, two = records["stay-30000001"], records["stay-30000002"]
    assert set(one.values) == {"vitals", "labs", "notes", "cxr", "ecg", "static"}
    assert set(two.values) == {"vitals", "static"}
    vitals = one.values["vitals"]
    assert isinstance(vitals, Series)
    rows = zip(vitals.times_O.tolist(), vitals.channels_O.tolist(), vitals.values_O.tolist(), strict=True)
    assert sorted(rows) == [(1.0, 0, 80.0), (2.0, 6, pytest.approx(37.0)), (3.0, 6, pytest.approx(36.5))]
    labs = one.values["labs"]
    assert isinstance(labs, Series) and labs.times_O.tolist() == [16.0] and labs.channels_O.tolist() == [1]
    assert one.values["notes"] == 'EARLIER\nLATER, "quoted"\nlines'
    picture = np.asarray(one.values["cxr"])
    assert picture.shape == (1, 64, 64) and abs(int(picture.mean()) - 200) < 3  # the frontal one of 21:30
    ecg = np.asarray(one.values["ecg"])
    in_order = np.array([100, 101, 102, 103, 105, 104, 106, 107, 108, 109, 110, 111]) / 200  # aVL before aVF
    np.testing.assert_allclose(ecg, np.tile(in_order, (10, 1)), rtol=1e-6)  # also where a sample had no value
    assert np.asarray(one.values["static"]).tolist() == [52, 0]
    assert one.targets == {"ihm_48": 0.0, "los_48": 1.0}  # left alive after 68 hours
    assert two.targets == {"ihm_48": 1.0, "los_48": 0.0}
    assert one.splits == two.splits and one.group == two.group == "10000032"
    assert two.values["static"].tolist() == [53, 0], "a year after anchor_year"
    assert notes == {
        "stays_packed": 2, "stays_without_observation": 1,
        "observations": 5, "vitals_observations": 4, "labs_observations": 1,
        "implausible_vitals": 1, "vitals_converted": 1, "vitals_outside": 2,
        "notes_reports": 2, "notes_outside": 1, "cxr_not_frontal": 1, "cxr_not_last": 1, "cxr_outside": 1,
        "ecg_gaps": 1,
    }  # fmt: skip


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
    with pytest.raises(ValueError, match=r"bbb\.jpg cannot be read"):
        read("mimic4", {"path": str(folder)})
    with pytest.raises(ValueError, match="cannot be read"):
        read_ecg(folder / "ecg/none", 5)
