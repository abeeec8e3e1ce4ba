"""Waveforms of a mapping: NumPy files and WFDB records side by side, and PTB-XL against the bytes of its files."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from data_shards import create_source, open_manifest, pack
from tests.data_shards.sources.build import packed_records, real_data
from tests.data_shards.sources.mimic4.build import lay_ecg
from tests.data_shards.sources.tables.build import read

LEADS = ["I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6"]


def mapping(**more: Any) -> dict[str, Any]:
    return {
        "records": {"file": "r.csv", "key": "id"},
        "modalities": {"ecg": {"kind": "waveform", "column": "path", "folder": "signals", **more}},
    }


COUNTS = np.array([[100, -32768], [-200, 300]])


def lay(folder: Path, **more: Any) -> Path:
    lay_ecg(folder / "signals" / "one", COUNTS, rate="250", leads=("II", "I"))
    return folder


@pytest.mark.parametrize("path", ["one", "one.hea", "one.dat"])
def test_a_record_is_named_with_or_without_a_suffix(tmp_path: Path, path: str) -> None:
    records, notes = read(lay(tmp_path), mapping(leads=["I", "II"], rate=250, unit="mV"), r_csv=f"id,path\na,{path}\n")
    np.testing.assert_array_equal(records["a"].values["ecg"], np.array([[0, 0.5], [1.5, -1]], np.float32))
    assert notes == {"waveform_samples_without_value": 1}


def test_records_and_arrays_lie_side_by_side(tmp_path: Path) -> None:
    np.save(lay(tmp_path) / "signals" / "two.npy", np.array([[1, -32768], [32767, 4]], np.int16))
    np.save(tmp_path / "signals" / "three.npy", np.array([0.25, np.float32(1e-7)], np.float32)[:, None] * [1, 2])
    csv = "id,path\na,one\nb,two.npy\nc,\nd,three.npy\n"
    records, notes = read(tmp_path, mapping(leads=2), r_csv=csv)
    assert records["a"].values["ecg"].tolist() == [[0.5, 0], [-1, 1.5]]  # in the order of the file
    assert records["b"].values["ecg"].tolist() == [[1, -32768], [32767, 4]], "as they are, nothing clipped"
    assert records["d"].values["ecg"][1].tolist() == [np.float32(1e-7), 2 * np.float32(1e-7)]
    assert records["c"].values == {}
    assert notes == {
        "waveform_samples_without_value": 1, "waveforms_at_250_per_second": 1, "waveforms_in_mV": 1,
        "waveform_leads.II,I": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "cell", "words"),
    [
        ({"leads": 2, "rate": 500}, "one", r"one has 250 samples per second, and 500 are declared"),
        ({"leads": ["I", "V1"]}, "one", r"one lacks lead V1 \(or has it twice\); it has II, I"),
        ({"leads": 2, "unit": "mmHg"}, "one", r"one is in mV, and mmHg is declared"),
        (
            {"leads": 3},
            "one",
            r"one: it has 2 channels \(II, I\), and 3 leads are declared; say which of them with chan",
        ),
        ({"leads": 2}, "none", r"signals/none: it cannot be read: No such file"),
        (
            {"leads": 1},
            "r.csv",
            r"signals/r\.csv: it is neither a sound \(\.wav, .*\) nor a film nor a WFDB record \(\.hea",
        ),
    ],
)
def test_what_does_not_fit_is_a_sentence(tmp_path: Path, more: dict[str, Any], cell: str, words: str) -> None:
    (lay(tmp_path) / "signals" / "r.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=words):
        read(tmp_path, mapping(**more), r_csv=f"id,path\na,{cell}\n")


def test_leads_in_two_orders_need_their_names(tmp_path: Path) -> None:
    lay_ecg(lay(tmp_path) / "signals" / "two", COUNTS, rate="250", leads=("I", "II"))
    csv = "id,path\na,one\nb,two\n"
    with pytest.raises(
        ValueError, match=r"two has the leads I, II, and those of .*one are II, I; say which ones and in which order"
    ):
        read(tmp_path, mapping(leads=2), r_csv=csv)
    records, _ = read(tmp_path, mapping(leads=["I", "II"]), r_csv=csv)
    assert [records[key].values["ecg"].tolist() for key in "ab"] == [[[0, 0.5], [1.5, -1]], [[0.5, 0], [-1, 1.5]]]


@pytest.mark.slow
def test_ptbxl(tmp_path: Path) -> None:
    folder = real_data("data/ptbxl_300")
    table = pd.read_csv(folder / "ptbxl_database.csv")
    codes = table.scp_codes.map(ast.literal_eval)
    rows = pd.DataFrame(
        {
            "ecg": [f"e{number}" for number in table.ecg_id],
            "patient": table.patient_id.astype(int),
            "path": table.filename_lr,
            "age": table.age,
            "sex": table.sex,
            "normal": [int(own.get("NORM", 0) >= 50) for own in codes],
            "part": table.strat_fold.map(lambda fold: {9: "val", 10: "test"}.get(fold, "train")),
        }
    )
    rows = rows[[(folder / f"{path}.hea").is_file() for path in rows.path]]
    rows.to_csv(tmp_path / "rows.csv", index=False)
    mapping = {
        "name": "ptbxl",
        "records": {"file": "rows.csv", "key": "ecg", "group": "patient"},
        "split": {"columns": {"default": "part"}},
        "modalities": {
            "ecg": {
                "kind": "waveform", "column": "path", "folder": str(folder), "leads": LEADS, "rate": 100, "unit": "mV",
            },
            "person": {"kind": "vector", "columns": ["age", "sex"], "empty": "known"},
        },
        "tasks": {"normal": {"kind": "binary", "column": "normal"}},
    }  # fmt: skip
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(mapping))
    report = pack(create_source("tables", {"path": str(tmp_path / "m.yaml")}), str(tmp_path / "out"), workers=1)
    records = packed_records(tmp_path / "out")
    assert report["records"] == len(records) == len(rows) == 300
    for row in rows.itertuples():
        record = records[row.ecg]
        # Format 16: little-endian whole numbers, lead by lead of each sample, a thousand to the millivolt in PTB-XL
        counts = np.fromfile(folder / f"{row.path}.dat", "<i2").reshape(1000, 12)
        np.testing.assert_array_equal(record.values["ecg"], (counts / 1000).astype(np.float32), err_msg=row.ecg)
        known = not np.isnan(row.age)
        assert np.asarray(record.values["person"]).tolist() == [row.age if known else 0, row.sex, known, 1]
        assert (float(record.targets["normal"][0]), record.splits["default"]) == (row.normal, row.part)
        assert record.group == str(row.patient)
    spec = open_manifest(str(tmp_path / "out")).schema.modalities[0]
    assert (spec.channels, spec.rate, spec.unit, spec.dtype) == (tuple(LEADS), 100, "mV", "float32")
    assert not any("waveform" in name and count for name, count in report["source"]["notes"].items())
