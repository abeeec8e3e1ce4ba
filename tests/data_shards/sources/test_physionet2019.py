"""The challenge of 2019 in its official layout, written here: values, hours, labels, what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_shards import Series, create_source, pack
from tests.data_shards.sources.build import packed_records, read

HEADER = (
    "HR|O2Sat|Temp|SBP|MAP|DBP|Resp|EtCO2|BaseExcess|HCO3|FiO2|pH|PaCO2|SaO2|AST|BUN|Alkalinephos|Calcium|Chloride|"
    "Creatinine|Bilirubin_direct|Glucose|Lactate|Magnesium|Phosphate|Potassium|Bilirubin_total|TroponinI|Hct|Hgb|PTT|"
    "WBC|Fibrinogen|Platelets|Age|Gender|Unit1|Unit2|HospAdmTime|ICULOS|SepsisLabel"
)


def lay_stay(folder: Path, name: str, hours: list[int], septic_from: int | None = None, **values: float) -> None:
    """A row an hour: HR is 60 + the hour, other values only in the first row."""
    rows = []
    for n, hour in enumerate(hours):
        own = {"HR": 60.0 + hour, "Age": 70.5, "Gender": 1, "HospAdmTime": -3.25, "ICULOS": hour, "SepsisLabel": 0}
        own |= values if n == 0 else {}
        own["SepsisLabel"] = int(septic_from is not None and hour >= septic_from)
        rows.append("|".join(str(own.get(column, "NaN")) for column in HEADER.split("|")))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.psv").write_text("\n".join([HEADER, *rows]) + "\n")


def lay_challenge(folder: Path) -> Path:
    lay_stay(folder / "training_setA/training", "p000001", [1, 2, 3, 5], septic_from=3, Lactate=2.5, WBC=11)
    lay_stay(folder / "training_setA/training", "p000002", list(range(1, 31)), septic_from=20)
    lay_stay(folder / "training_setA/training", "p000003", list(range(4, 20)))
    lay_stay(folder / "training_setB", "p100001", list(range(1, 15)), septic_from=10)
    return folder


def test_each_hour_is_a_moment_with_its_label(tmp_path: Path) -> None:
    records, notes = read("physionet2019", {"path": str(lay_challenge(tmp_path))})
    one = records["p000001"]
    assert one.moments is not None and one.moments.tolist() == [1, 2, 3, 5]
    assert np.asarray(one.targets["sepsis"]).tolist() == [0, 0, 1, 1]
    vitals, gas, blood = (one.values[name] for name in ("vitals", "blood_gas", "hematology"))
    assert isinstance(vitals, Series) and isinstance(gas, Series) and isinstance(blood, Series)
    assert (vitals.times_O.tolist(), vitals.channels_O.tolist(), vitals.values_O.tolist()) == (
        [1, 2, 3, 5], [0] * 4, [61, 62, 63, 65],
    )  # fmt: skip
    assert (gas.times_O.tolist(), gas.channels_O.tolist(), gas.values_O.tolist()) == ([1], [6], [2.5])
    assert (blood.channels_O.tolist(), blood.values_O.tolist()) == ([3], [11])
    assert "chemistry" not in one.values
    static = np.asarray(one.values["static"]).tolist()
    assert static == [70.5, 1, 0, 0, -3.25, 1, 1, 0, 0, 1]
    assert notes == {"stays": 4, "stays_packed": 4, "observations": 66, "moments": 64}
    assert {key: record.splits["a_to_b"] for key, record in records.items() if key[1] == "1"} == {"p100001": "test"}
    assert {records[key].splits["a_to_b"] for key in ("p000001", "p000002", "p000003")} <= {"train", "val"}
    schema = create_source("physionet2019", {"path": str(tmp_path)}).schema
    units = {c: u for m in schema.modalities for c, u in zip(m.channels, m.units, strict=False)}
    assert (units["Temp"], units["Magnesium"], units["TroponinI"]) == ("deg C", "mmol/dL", "ng/mL")
    assert sorted(c for m in schema.modalities[:-1] for c in m.channels) == sorted(HEADER.split("|")[:34])


def test_one_label_a_stay_is_of_later_hours(tmp_path: Path) -> None:
    records, notes = read("physionet2019", {"path": str(lay_challenge(tmp_path)), "labels": "stay"})
    assert {key: record.targets["sepsis"] for key, record in records.items()} == {"p000002": 1.0, "p000003": 0.0}
    vitals = records["p000002"].values["vitals"]
    assert isinstance(vitals, Series) and vitals.times_O.tolist() == list(range(1, 13))
    assert notes["stays_too_short"] == 1 and notes["stays_septic_in_window"] == 1
    longer, _ = read("physionet2019", {"path": str(tmp_path), "labels": "stay", "window_h": 9})
    assert {key: record.targets["sepsis"] for key, record in longer.items()} == {
        "p000002": 1.0, "p000003": 0.0, "p100001": 1.0,
    }  # fmt: skip


def test_packed_hours_are_samples_and_a_list_says_the_parts(tmp_path: Path) -> None:
    (tmp_path / "parts.csv").write_text("patient,mine\np000001,train\np000002,train\np000003,val\np999999,test\n")
    options = {"path": str(lay_challenge(tmp_path / "data")), "splits": str(tmp_path / "parts.csv")}
    report = pack(create_source("physionet2019", options), str(tmp_path / "out"), workers=2)
    assert (report["records"], report["samples"]) == (4, 64)
    notes = report["source"]["notes"]
    assert (notes["stays_without_part.mine"], notes["split_ids_unknown"]) == (1, 1)
    records = packed_records(tmp_path / "out")
    assert [records[f"p00000{n}"].splits["mine"] for n in (1, 2, 3)] == ["train", "train", "val"]
    assert "mine" not in records["p100001"].splits


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("HR|O2Sat", "HR|SpO2"), "not the challenge's header"),
        (("61.0", "many"), r"p000001\.psv, line 2 holds a cell that is no number"),
        (("|5|1", "|2|1"), "ICULOS must ascend"),
        (("|5|1", "|5|2"), "SepsisLabel be 0 or 1"),
        (("61.0|", ""), "line 2 has 40 cells"),
    ],
)
def test_a_file_that_is_not_the_challenges_is_refused(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    file = lay_challenge(tmp_path) / "training_setA/training/p000001.psv"
    text = file.read_text()
    file.write_text(text.replace(*change))
    assert file.read_text() != text
    with pytest.raises(ValueError, match=said):
        read("physionet2019", {"path": str(tmp_path)})


def test_a_folder_without_or_with_double_stays_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no file such as p000001\.psv"):
        create_source("physionet2019", {"path": str(tmp_path)})
    lay_stay(tmp_path / "a", "p000001", [1])
    lay_stay(tmp_path / "b", "p000001", [1])
    with pytest.raises(ValueError, match=r"holds p000001\.psv twice"):
        create_source("physionet2019", {"path": str(tmp_path)})
