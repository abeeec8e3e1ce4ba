"""Which stays take part, their ages, outcomes and parts, on hand-made stays of every case; all are accounted for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards import create_source, pack
from tests.data_shards.sources.build import read
from tests.data_shards.sources.mimic4.build import hours_after, lay_tables

IN = "2150-03-01 08:00:00"
# stay -> (hours of the stay, hours until death in hospital or None, ihm_48, los_48, los_48 with los_death=unit)
OUTCOMES = {
    "1": (60, None, 0, 1, 1),  # left after 60 hours, survived
    "2": (95.999, None, 0, 1, 1),
    "3": (96, None, 0, 0, 0),  # still there at hour 96
    "4": (200, None, 0, 0, 0),
    "5": (60, 60, 1, 0, 0),  # died as the stay ended
    "6": (60, 58, 1, 0, 0),  # died in the unit, outtime written later
    "7": (60, 61, 1, 0, 1),  # left alive, died in the hour after
    "8": (60, 500, 1, 0, 1),  # left alive, died weeks later in the same admission
    "9": (200, 90, 1, 0, 0),
    "10": (48, None, 0, 1, 1),  # exactly 48 hours
    "11": (60, 48, 1, 0, 0),  # died exactly at hour 48
}
LEFT_OUT = {
    "20": (47.999, None, "stays_too_short"),
    "21": (0, None, "stays_too_short"),
    "22": (60, 47.999, "stays_died_in_window"),
}


def lay_outcomes(folder: Path, **more: Any) -> Path:
    """One patient and admission a stay; those of OUTCOMES, those of LEFT_OUT, and oddities."""
    stays, ends = [], []
    for name, (hours, death, *_) in {**OUTCOMES, **LEFT_OUT}.items():
        stays.append((f"p{name}", f"a{name}", name, IN, hours_after(IN, hours)))
        ends.append((f"a{name}", "" if death is None else hours_after(IN, death), int(death is not None)))
    stays += [
        ("p30", "a30", "30", IN, ""),  # no end
        ("p31", "a31", "31", IN, hours_after(IN, -1)),  # ends before it begins
        ("p32", "a32", "32", IN, hours_after(IN, 60)),  # a child
        ("p33", "a99", "33", IN, hours_after(IN, 60)),  # no such admission
        ("p99", "a30", "34", IN, hours_after(IN, 60)),  # no such patient
        ("p35", "a35", "35", IN, hours_after(IN, 60)),  # no age
        ("p36", "a36", "36", IN, hours_after(IN, 60)),  # never measured
    ]
    ends += [(f"a{n}", "", 0) for n in (30, 31, 32, 33, 35, 36)]
    people = [(s[0], "F", {"p32": 17, "p35": ""}.get(s[0], 50), 2150) for s in stays if s[0] != "p99"]
    chart = [(s[0], s[2], hours_after(IN, 1), 220045, 80) for s in stays if s[0] not in ("p36", "p21")]
    return lay_tables(
        folder,
        patients=("subject_id,gender,anchor_age,anchor_year", people),
        admissions=("hadm_id,deathtime,hospital_expire_flag", ends),
        icustays=("subject_id,hadm_id,stay_id,intime,outtime", stays),
        chartevents=("subject_id,stay_id,charttime,itemid,valuenum", chart),
        **more,
    )


@pytest.mark.parametrize(("death", "column"), [("admission", 3), ("unit", 4)])
def test_outcomes_of_hand_made_stays(tmp_path: Path, death: str, column: int) -> None:
    options = {"path": str(lay_outcomes(tmp_path)), "los_death": death}
    records, _ = read("mimic4", options)
    found = {key: (int(r.targets["ihm_48"]), int(r.targets["los_48"])) for key, r in records.items()}
    assert found == {f"stay-{name}": (own[2], own[column]) for name, own in OUTCOMES.items()}
    about = create_source("mimic4", options).schema.task("los_48").description
    assert (
        about
        == {
            "admission": "the stay ends before hour 96 and the patient does not die in hospital",
            "unit": "the stay ends before hour 96 and the patient does not die in the unit",
        }[death]
    )


def test_each_stay_that_is_left_out_has_a_reason_and_the_numbers_add_up(tmp_path: Path) -> None:
    report = pack(create_source("mimic4", {"path": str(lay_outcomes(tmp_path))}), str(tmp_path / "out"), workers=2)
    notes = report["source"]["notes"]
    reasons = {
        "stays_too_short": 2, "stays_died_in_window": 1, "stays_without_times": 2, "stays_not_adult": 1,
        "stays_without_admission": 1, "stays_without_patient": 1, "stays_without_age": 1,
        "stays_without_observation": 1,
    }  # fmt: skip
    assert {name: notes[name] for name in reasons} == reasons
    assert notes["stays_in_icustays"] == 21 == report["records"] + sum(reasons.values()) and report["records"] == 11
    assert notes["stays_left_unit_alive_then_died"] == 2
    assert report["source"]["left_out"].startswith("10 of 21 stays left out: 1 their patient is not in hosp/patients; ")
    assert "2 shorter than the window; 1 died within the window" in report["source"]["left_out"]


def test_without_a_window_short_stays_and_early_deaths_take_part(tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text("sepsis: {codes: ['0389']}\n")
    (tmp_path / "c.csv").write_text("icd10cm,icd9cm\nA41.9,038.9\n")
    codes = ("subject_id,hadm_id,icd_code,icd_version", [("p20", "a20", "A419", 10), ("p8", "a8", "4019 ", 9)])
    options = {
        "path": str(lay_outcomes(tmp_path, diagnoses=codes)), "task": "phenotypes",
        "definitions": str(tmp_path / "d.yaml"), "icd10": str(tmp_path / "c.csv"), "history": False,
    }  # fmt: skip
    records, notes = read("mimic4", options)
    # stay 21 has no hour, and so no observation
    assert records.keys() == {f"stay-{name}" for name in [*OUTCOMES, "20", "22"]}
    assert {key for key, record in records.items() if np.asarray(record.targets["phenotypes"]).any()} == {"stay-20"}
    assert notes["stays_without_observation"] == 2


AGES = {  # patient -> (anchor_age, anchor_year, year of intime, age or None if no adult)
    "same": (52, 2180, 2180, 52),
    "later": (52, 2180, 2187, 59),
    "before": (52, 2180, 2178, 50),
    "grown": (17, 2180, 2181, 18),
    "child": (18, 2180, 2179, None),
    "oldest": (91, 2180, 2181, 92),
}


def test_the_age_is_the_one_at_the_stay_and_decides_who_is_an_adult(tmp_path: Path) -> None:
    stays = [(n, f"a{n}", n, f"{year}-02-03 00:00:00", f"{year}-02-09 00:00:00") for n, (_, _, year, _) in AGES.items()]
    lay_tables(
        tmp_path,
        patients=("subject_id,gender,anchor_age,anchor_year", [(n, "M", a, y) for n, (a, y, _, _) in AGES.items()]),
        admissions=("hadm_id,deathtime,hospital_expire_flag", [(f"a{n}", "", 0) for n in AGES]),
        icustays=("subject_id,hadm_id,stay_id,intime,outtime", stays),
    )
    report = pack(create_source("mimic4", {"path": str(tmp_path)}), str(tmp_path / "out"))
    records, _ = read("mimic4", {"path": str(tmp_path)})
    ages = {r.group: np.asarray(r.values["static"]).tolist() for r in records.values()}
    assert ages == {name: [age, 1] for name, (_, _, _, age) in AGES.items() if age is not None}
    assert (report["source"]["notes"]["stays_not_adult"], report["source"]["notes"]["stays_age_above_89"]) == (1, 1)


def small(folder: Path, gender: str = "F", flag: Any = 0, death: str = "", **more: Any) -> Path:
    """One patient with two stays of one admission, which follow each other at once."""
    middle = hours_after(IN, 60)
    tables: dict[str, Any] = {
        "patients": ("subject_id,gender,anchor_age,anchor_year", [("p", gender, 50, 2150)]),
        "admissions": ("hadm_id,deathtime,hospital_expire_flag", [("a", death, flag)]),
        "icustays": (
            "subject_id,hadm_id,stay_id,intime,outtime",
            [("p", "a", "1", IN, middle), ("p", "a", "2", middle, hours_after(middle, 70))],
        ),
    }
    return lay_tables(folder, **{**tables, **more})


def test_what_is_not_known_is_no_guess(tmp_path: Path) -> None:
    records, _ = read("mimic4", {"path": str(small(tmp_path, gender="?", flag=""))})
    assert [set(record.values) for record in records.values()] == [{"vitals", "labs"}, {"vitals"}]
    assert [r.targets for r in records.values()] == [{"ihm_48": None, "los_48": None}] * 2
    source = create_source("mimic4", {"path": str(tmp_path)})
    report = pack(source, str(tmp_path / "out"))
    notes = report["source"]["notes"]
    assert notes["stays_of_unknown_gender"] == notes["stays_of_unknown_outcome"] == 2


def test_every_stay_of_an_admission_that_ends_in_death_has_that_outcome(tmp_path: Path) -> None:
    records, _ = read("mimic4", {"path": str(small(tmp_path, flag=1, death=hours_after(IN, 100)))})
    # dies in the second stay, which lasts until hour 130: hour 40 of that one is before its window ends
    assert {key: r.targets for key, r in records.items()} == {"stay-1": {"ihm_48": 1.0, "los_48": 0.0}}
    unit, _ = read("mimic4", {"path": str(tmp_path), "los_death": "unit"})
    assert unit["stay-1"].targets == {"ihm_48": 1.0, "los_48": 1.0}


@pytest.mark.parametrize(
    ("table", "row", "words"),
    [
        ("patients", ("p", "F", 50, 2151), r"hosp/patients.csv, row 2: subject_id p is there twice"),
        ("admissions", ("a", "", 1), r"hosp/admissions.csv, row 2: hadm_id a is there twice"),
        ("icustays", ("p", "a", "1", IN, IN), r"icu/icustays.csv, row 3: stay_id 1 is there twice"),
    ],
)
def test_rows_that_say_two_things_are_refused(tmp_path: Path, table: str, row: tuple[Any, ...], words: str) -> None:
    file = small(tmp_path) / ("icu" if table == "icustays" else "hosp") / f"{table}.csv"
    file.write_text(file.read_text() + ",".join(map(str, row)) + "\n")
    with pytest.raises(ValueError, match=words):
        read("mimic4", {"path": str(tmp_path)})


def test_ids_that_were_numbers_with_gaps_or_are_padded_find_each_other(tmp_path: Path) -> None:
    rows = [("1.0", "3", hours_after(IN, 1), 220045, 80), (" 1 ", "3.0", hours_after(IN, 2), 220045, 81)]
    folder = small(
        tmp_path,
        patients=("subject_id,gender,anchor_age,anchor_year", [("1", "F", 50, 2150)]),
        admissions=("hadm_id,deathtime,hospital_expire_flag", [("2.0", "", 0)]),
        icustays=("subject_id,hadm_id,stay_id,intime,outtime", [(1, 2, "3.0", IN, hours_after(IN, 60))]),
        chartevents=("subject_id,stay_id,charttime,itemid,valuenum", rows),
        labevents=("subject_id,charttime,itemid,valuenum", [("9", IN, 50971, 4), ("1", IN, 50971, 4)]),
    )
    records, notes = read("mimic4", {"path": str(folder)})
    assert set(records) == {"stay-3"} and notes["vitals_observations"] == 2
    assert notes["vitals_charted_to_another_stay"] == 0


def test_a_table_of_another_release_is_refused(tmp_path: Path) -> None:
    header = "subject_id,stay_id,charttime,itemid,valuenum"
    folder = small(tmp_path, chartevents=(header, [("q", "1", hours_after(IN, 1), 220045, 80)]))
    with pytest.raises(
        ValueError, match=r"chartevents.csv: none of its 1 rows is an observation of a patient with a s"
    ):
        read("mimic4", {"path": str(folder)})
    (folder / "hosp/admissions.csv").write_text("hadm_id,deathtime,hospital_expire_flag\nb,,0\n")
    with pytest.raises(ValueError, match=r"no stay is left; 2 of 2 stays left out: 2 their admission is not in hosp"):
        read("mimic4", {"path": str(folder)})


def test_events_at_the_edges_of_windows_units_and_oddities_are_all_in_the_counts(tmp_path: Path) -> None:
    chart = [
        ("p", "1", IN, 220045, 60, "bpm"),  # at 0
        ("p", "1", hours_after(IN, 48), 220045, 61, ""),  # at 48
        ("p", "1", hours_after(IN, 48.001), 220045, 62, ""),  # outside
        ("p", "1", hours_after(IN, 60), 220045, 63, ""),  # hour 0 of stay 2
        ("p", "2", hours_after(IN, 1), 220045, 64, ""),  # the chart says the other stay
        ("p", "1", hours_after(IN, 2), 223762, 98.6, "°F"),  # an item in Celsius, a row in Fahrenheit
        ("p", "1", hours_after(IN, 2), 223762, 37.5, "°C"),
        ("p", "1", hours_after(IN, 3), 223761, 98.6, ""),  # an item in Fahrenheit
        ("p", "1", hours_after(IN, 3), 223761, 36.5, "Deg. C"),
        ("p", "1", hours_after(IN, 4), 224639, 200, "lbs"),
        ("p", "1", hours_after(IN, 5), 224639, 80, "kg"),
        ("p", "1", hours_after(IN, 6), 224639, 80, "stone"),  # nobody knows it: kept and counted
        ("p", "1", hours_after(IN, 7), 220045, 400, ""),  # impossible
        ("p", "1", hours_after(IN, 8), 220045, "", ""),  # no number
        ("p", "1", "", 220045, 60, ""),  # no time
        ("p", "1", hours_after(IN, 9), 1, 60, ""),  # another item
        ("q", "9", hours_after(IN, 9), 220045, 60, ""),  # another patient
        ("p", "1", hours_after(IN, 10), 220179, 120, "mmHg"),
        ("p", "1", hours_after(IN, 10), 220050, 121, "mmHg"),  # cuff and artery at once
    ]
    folder = small(tmp_path, chartevents=("subject_id,stay_id,charttime,itemid,valuenum,valueuom", chart))
    records, _ = read("mimic4", {"path": str(folder)})
    one, two = (records[f"stay-{n}"].values["vitals"] for n in (1, 2))
    rows = zip(one.times_O.tolist(), one.channels_O.tolist(), one.values_O.round(3).tolist(), strict=True)
    names = create_source("mimic4", {"path": str(folder)}).schema.modalities[0].channels
    assert [(time, names[channel], pytest.approx(value, abs=1e-3)) for time, channel, value in rows] == [
        (0, "heart_rate", 60), (48, "heart_rate", 61), (1, "heart_rate", 64),
        (2, "temperature", 37), (2, "temperature", 37.5), (3, "temperature", 37), (3, "temperature", 36.5),
        (4, "weight", 90.718), (5, "weight", 80), (6, "weight", 80), (10, "systolic", 120), (10, "systolic", 121),
    ]  # fmt: skip
    assert (two.times_O.tolist(), two.values_O.tolist()) == ([0], [63])
    notes = Counter(pack(create_source("mimic4", {"path": str(folder)}), str(tmp_path / "out"))["source"]["notes"])
    counted = {
        "rows": 19, "of_other_patients": 1, "of_other_items": 1, "without_number": 1, "without_time": 1, "outside": 1,
        "observations": 13, "converted": 3, "charted_to_another_stay": 2, "at_one_time_and_channel": 3,
        "of_another_unit.weight.stone": 1, "in_two_stays": 0,
    }  # fmt: skip
    assert {name: notes[f"vitals_{name}"] for name in counted} == counted and notes["implausible_vitals"] == 1


def test_a_row_that_two_windows_share_is_counted_as_such(tmp_path: Path) -> None:
    middle = hours_after(IN, 48)
    stays = [("p", "a", "1", IN, middle), ("p", "a", "2", middle, hours_after(middle, 48))]
    folder = small(
        tmp_path,
        icustays=("subject_id,hadm_id,stay_id,intime,outtime", stays),
        chartevents=("subject_id,stay_id,charttime,itemid,valuenum", [("p", "1", middle, 220045, 80)]),
    )
    records, notes = read("mimic4", {"path": str(folder)})
    assert [r.values["vitals"].times_O.tolist() for r in records.values()] == [[48], [0]]
    assert notes["vitals_in_two_stays"] == 1
    assert pack(create_source("mimic4", {"path": str(folder)}), str(tmp_path / "out"))["observations"] == 3


def test_counts_that_do_not_add_up_stop_the_packing(tmp_path: Path) -> None:
    source = create_source("mimic4", {"path": str(small(tmp_path))})
    notes = Counter[str]()
    assert len([record for unit in source.units() for record in source.read(unit, notes)]) == 2
    source.report(notes)
    for lost in ("stays_packed", "vitals_observations"):
        with pytest.raises(ValueError, match="the counts of mimic4 do not add up"):
            source.report(notes - Counter({lost: 1}))
