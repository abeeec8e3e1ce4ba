"""PTB-XL in its official layout, written here, and 300 of its ECGs where they are: values, folds, labels."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_shards import create_source, pack
from tests.data_shards.sources.build import packed_records, read, real_data
from tests.data_shards.sources.mimic4.build import lay_ecg, table

LEADS = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
# ecg_id, patient_id, age, sex, height, weight, scp_codes, fold
ROWS = (
    (1, "15709.0", "56.0", 1, "", "63.0", "{'NORM': 100.0, 'LVOLT': 0.0, 'SR': 0.0}", 3),
    (2, "15709.0", "300.0", 0, "170.0", "", "{'IMI': 35.0, 'ISC_': 0.0, 'AFIB': 0.0}", 8),
    (3, "", "", 0, "", "", "{'AFIB': 100.0}", 9),
    (4, "7", "40", 1, "", "", "{'IMI': 100.0, 'ASMI': 50.0}", 10),
)
STATEMENTS = (
    ("NORM", 1.0, "NORM"), ("IMI", 1.0, "MI"), ("ASMI", 1.0, "MI"), ("ISC_", 1.0, "STTC"), ("LVOLT", "", ""),
    ("AFIB", "", ""),
)  # fmt: skip


def lay_ptbxl(folder: Path, statements: bool = True, samples: int = 40) -> dict[str, np.ndarray]:
    """The tables and records of both rates; returns counts of the small ones, by key of the record."""
    header = "ecg_id,patient_id,age,sex,height,weight,scp_codes,strat_fold,filename_lr,filename_hr"
    names = {row[0]: f"00000/{row[0]:05d}" for row in ROWS}
    rows = [(*row, f"records100/{names[row[0]]}_lr", f"records500/{names[row[0]]}_hr") for row in ROWS]
    table(folder / "ptbxl_database.csv", header, rows)
    if statements:
        table(folder / "scp_statements.csv", ",description,diagnostic,diagnostic_class",
              [(code, "words, and a comma", diagnostic, name) for code, diagnostic, name in STATEMENTS])  # fmt: skip
    found = {}
    for number, name in names.items():
        counts = np.arange(samples)[:, None] * 12 + np.arange(12) + 1000 * number
        lay_ecg(folder / f"records100/{name}_lr", counts, "100", LEADS, "1000.0(0)/mV")
        lay_ecg(folder / f"records500/{name}_hr", np.repeat(counts, 5, 0), "500", LEADS, "1000.0(0)/mV")
        found[f"ecg-{number}"] = counts
    return found


def test_values_folds_and_labels_are_those_of_the_files(tmp_path: Path) -> None:
    counts = lay_ptbxl(tmp_path)
    records, notes = read("ptbxl", {"path": str(tmp_path)})
    for key, own in counts.items():
        np.testing.assert_allclose(np.asarray(records[key].values["ecg"]), own / 1000, rtol=1e-6)
    assert {key: record.splits["default"] for key, record in records.items()} == {
        "ecg-1": "train", "ecg-2": "train", "ecg-3": "val", "ecg-4": "test",
    }  # fmt: skip
    assert [record.group for record in records.values()] == ["patient-15709", "patient-15709", None, "patient-7"]
    labels = {key: record.targets["superclass"] for key, record in records.items()}
    assert labels.pop("ecg-3") is None
    assert {key: np.asarray(label).tolist() for key, label in labels.items()} == {
        "ecg-1": [1, 0, 0, 0, 0], "ecg-2": [0, 1, 1, 0, 0], "ecg-4": [0, 1, 0, 0, 0],
    }  # fmt: skip
    assert [record.targets["normal"] for record in records.values()] == [1, 0, 0, 0]
    assert np.asarray(records["ecg-1"].values["static"]).tolist() == [56, 1, 0, 63, 1, 1, 0, 1]
    assert np.asarray(records["ecg-2"].values["static"]).tolist() == [90, 0, 170, 0, 1, 1, 1, 0]
    assert notes == {"ages_above_89": 1, "ecgs_without_superclass": 1}
    fast, _ = read("ptbxl", {"path": str(tmp_path), "rate": "500"})
    np.testing.assert_allclose(np.asarray(fast["ecg-2"].values["ecg"])[::5], counts["ecg-2"] / 1000, rtol=1e-6)
    assert create_source("ptbxl", {"path": str(tmp_path), "rate": "500"}).schema.modalities[0].rate == 500


def test_without_statements_the_only_task_is_normal(tmp_path: Path) -> None:
    lay_ptbxl(tmp_path, statements=False)
    assert create_source("ptbxl", {"path": str(tmp_path)}).schema.task_names == ("normal",)


def test_what_is_missing_or_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; give the folder that holds it and records100"):
        create_source("ptbxl", {"path": str(tmp_path)})
    lay_ptbxl(tmp_path)
    (tmp_path / "records100/00000/00003_lr.dat").unlink()
    with pytest.raises(ValueError, match=r"00003_lr.*leave such ECGs out with -o missing=drop"):
        read("ptbxl", {"path": str(tmp_path)})
    records, notes = read("ptbxl", {"path": str(tmp_path), "missing": "drop"})
    assert "ecg-3" not in records and len(records) == 3 and notes["ecgs_left_out"] == 1
    file = tmp_path / "ptbxl_database.csv"
    text = file.read_text()
    for old, new, said in (
        ("{'IMI': 100.0, 'ASMI': 50.0}", "AFIB", r"ecg_id 4: scp_codes is 'AFIB', not statements"),
        (",10,records100", ",11,records100", r"ecg_id 4: strat_fold is 11"),
    ):
        file.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=said):
            read("ptbxl", {"path": str(tmp_path), "missing": "drop"})
    (tmp_path / "scp_statements.csv").write_text(",diagnostic,diagnostic_class\nIMI,1.0,heart\n")
    with pytest.raises(ValueError, match="the diagnostic_class of IMI is 'heart', none of NORM, MI"):
        create_source("ptbxl", {"path": str(tmp_path)})


@pytest.mark.slow
def test_three_hundred_real_ones_against_another_reading(tmp_path: Path) -> None:
    folder = real_data("data/ptbxl_300")
    report = pack(create_source("ptbxl", {"path": str(folder)}), str(tmp_path / "out"), workers=1)
    records, frame = packed_records(tmp_path / "out"), pd.read_csv(folder / "ptbxl_database.csv")
    assert report["records"] == len(frame) == len(records) == 300
    parts = frame.strat_fold.map(lambda fold: "train" if fold <= 8 else {9: "val", 10: "test"}[fold])
    assert Counter(parts) == {"train": 200, "val": 58, "test": 42}
    for row, part in zip(frame.itertuples(), parts, strict=True):
        record = records[f"ecg-{row.ecg_id}"]
        raw = np.fromfile(folder / f"{row.filename_lr}.dat", "<i2").reshape(-1, 12)  # format 16, 1000 counts a mV
        np.testing.assert_array_equal(np.asarray(record.values["ecg"]), (raw / 1000).astype(np.float32))
        assert record.splits == {"default": part} and record.targets["normal"] == float("'NORM'" in row.scp_codes)
    with next(folder.glob("records100/*/*.hea")).open() as header:
        assert [line[-1] for line in list(csv.reader(header, delimiter=" "))[1:13]] == list(LEADS)
