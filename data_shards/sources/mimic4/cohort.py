"""Which stays of MIMIC-IV take part in a task: adults and, for the 48-hour tasks, stays that last 48 hours, alive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.sources.mimic4.recordings import find_table
from data_shards.sources.readers.table_files import read_small

COHORT_TABLES = ("hosp/patients", "hosp/admissions", "icu/icustays")
HOUR = np.timedelta64(3600, "s")
ADULT = 18
PATIENTS = {"subject_id": "text", "gender": "text", "anchor_age": "number"}
ADMISSIONS = {"hadm_id": "text", "deathtime": "date", "hospital_expire_flag": "number"}
ICUSTAYS = {"subject_id": "text", "hadm_id": "text", "stay_id": "text", "intime": "date", "outtime": "date"}


@dataclass(frozen=True)
class Stay:
    """One stay in intensive care; times are datetime64[us]."""

    stay: str
    subject: str
    admission: str
    start: np.datetime64
    end: np.datetime64
    male: float
    age: float
    died: bool
    death: np.datetime64


def read_cohort(folder: Path, shortest_h: float | None) -> list[list[Stay]]:
    """Stays of adults, patient by patient, in order of time; those of at least ``shortest_h`` hours if it is given.

    Raises:
        ValueError: a table is missing or of another release, or nobody is left.
    """
    patients, admissions, icustays = (find_table(folder, name) for name in COHORT_TABLES)
    people = {row["subject_id"]: row for row in _rows(patients, PATIENTS)}
    ends = {row["hadm_id"]: row for row in _rows(admissions, ADMISSIONS)}
    found: dict[str, list[Stay]] = {}
    for row in _rows(icustays, ICUSTAYS):
        stay = _stay(row, people, ends)
        if stay.age >= ADULT and (shortest_h is None or _lasts(stay, shortest_h)):
            found.setdefault(stay.subject, []).append(stay)
    if not found:
        raise ValueError(f"{icustays}: no stay of an adult" + (f" lasts {shortest_h:g} hours" if shortest_h else ""))
    return [sorted(found[subject], key=lambda stay: (stay.start, stay.stay)) for subject in sorted(found)]


def _rows(file: Path, columns: dict[str, str]) -> list[dict[str, Any]]:
    table = read_small(file, columns)
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def _stay(row: dict[str, Any], people: dict[str, dict[str, Any]], ends: dict[str, dict[str, Any]]) -> Stay:
    if row["subject_id"] not in people or row["hadm_id"] not in ends:
        raise ValueError(f"stay {row['stay_id']}: its patient or admission is missing; are the tables of one release?")
    person, end = people[row["subject_id"]], ends[row["hadm_id"]]
    out = np.datetime64(row["outtime"] or row["intime"], "us")
    return Stay(
        str(row["stay_id"]),
        str(row["subject_id"]),
        str(row["hadm_id"]),
        np.datetime64(row["intime"], "us"),
        out,
        float(person["gender"] == "M"),
        float(person["anchor_age"]),
        bool(end["hospital_expire_flag"]),
        np.datetime64(end["deathtime"] or "NaT", "us"),
    )


def _lasts(stay: Stay, hours: float) -> bool:
    """Whether the stay, and the patient's life, last so long; NaT compares as False."""
    horizon = stay.start + np.timedelta64(int(hours * 3600), "s")
    return bool(stay.end >= horizon) and not bool(stay.death < horizon)
