"""Which stays of MIMIC-IV take part in a task, with the age at the stay, and why each of the others is left out.

Adults take part and, in the 48-hour tasks, those of their stays that last 48 hours (outtime - intime; FuseMoE: a length
of stay of two days) and whose patient does not die before the 48th hour. The age at a stay is anchor_age + the year of
intime - anchor_year: anchor_age is the age in anchor_year, not at the stay. MIMIC-IV gives everyone above 89 the
anchor_age 91, so theirs is no true age; such stays are counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_shards.sources.base import hashed_part
from data_shards.sources.mimic4.tables import IDS, find_table
from data_shards.sources.part_lists import PartList, plain_id
from data_shards.sources.readers.table_files import read_small

COHORT_TABLES = ("hosp/patients", "hosp/admissions", "icu/icustays")
HOUR = np.timedelta64(3600, "s")
ADULT = 18
AGE_OF_THE_OLDEST = 91  # anchor_age of everyone above 89
SHARES_BUT_TEST = (("train", 70 / 85), ("val", 15 / 85))
NEXT_48 = 96  # hour until which a stay that lasts 48 hours has to end for los_48
PATIENTS = {"subject_id": "text", "gender": "text", "anchor_age": "number", "anchor_year": "number"}
ADMISSIONS = {"hadm_id": "text", "deathtime": "date", "hospital_expire_flag": "number"}
DISCHARGES = {"subject_id": "text", "dischtime": "date"}
ICUSTAYS = {"subject_id": "text", "hadm_id": "text", "stay_id": "text", "intime": "date", "outtime": "date"}

# Why a stay is left out -> what the report says of it
REASONS = {
    "stays_without_patient": "their patient is not in hosp/patients",
    "stays_without_admission": "their admission is not in hosp/admissions",
    "stays_without_times": "no intime, or no outtime after it",
    "stays_without_age": "no anchor_age or anchor_year",
    "stays_not_adult": f"younger than {ADULT}",
    "stays_too_short": "shorter than the window",
    "stays_died_in_window": "died within the window",
    "stays_without_observation": "no vital sign and no laboratory value in the window",
}


@dataclass(frozen=True)
class Stay:
    """One stay in intensive care; times are datetime64[us].

    Attributes:
        male: 1 or 0, NaN if gender is neither M nor F. age: at the stay, in years. died: in hospital, in this
            admission; None if nothing says so. death: in hospital, NaT if none is known. parts: split -> part.
            earlier: admissions of the patient that had ended when the stay began.
    """

    stay: str
    subject: str
    admission: str
    start: np.datetime64
    end: np.datetime64
    male: float
    age: float
    died: bool | None
    death: np.datetime64
    parts: dict[str, str] = field(default_factory=dict)
    earlier: tuple[str, ...] = ()

    @property
    def died_in_unit(self) -> bool:
        """Whether death is not after the end of the stay; NaT compares as False."""
        return bool(self.death <= self.end)

    def left_alive(self, death: Literal["admission", "unit"]) -> float | None:
        """los_48 of a stay of 48 hours: 1 if it ends alive before hour 96.

        Args:
            death: that counts: any of the admission, also after the stay (as FuseMoE labels), or only in the unit.

        Returns:
            None if it ends before hour 96 and whether, or for death in the unit when, the patient died is not known.
        """
        if self.end >= self.start + NEXT_48 * HOUR:
            return 0.0
        if self.died is None or (death == "unit" and self.died and np.isnat(self.death)):
            return None
        return float(not (self.died if death == "admission" else self.died_in_unit))


@dataclass
class Cohort:
    """Stays of each patient, in order of time, and how many stays there were, were left out, and are odd."""

    patients: list[list[Stay]]
    counts: Counter[str]


def read_cohort(folder: Path, shortest_h: float | None, history: bool = False) -> Cohort:
    """Stays of adults, patient by patient; those of at least ``shortest_h`` hours, alive, if it is given.

    Args:
        history: find earlier admissions, by the times of discharge.

    Raises:
        ValueError: a table is missing, a patient, admission or stay is there twice, or nobody is left.
    """
    patients, admissions, icustays = (find_table(folder, name) for name in COHORT_TABLES)
    people = _by_id(patients, PATIENTS, "subject_id")
    ends = _by_id(admissions, {**ADMISSIONS, **(DISCHARGES if history else {})}, "hadm_id")
    found, counts = dict[str, list[Stay]](), Counter[str]()
    for row in _by_id(icustays, ICUSTAYS, "stay_id").values():
        counts["stays_in_icustays"] += 1
        person, end = people.get(row["subject_id"]), ends.get(row["hadm_id"])
        stay = _stay(row, person, end)
        reason = stay if isinstance(stay, str) else _left_out(stay, shortest_h)
        if reason is not None:
            counts[reason] += 1
        elif isinstance(stay, Stay) and person is not None:
            found.setdefault(stay.subject, []).append(stay)
            counts["stays_of_unknown_gender"] += bool(np.isnan(stay.male))
            counts["stays_age_above_89"] += person["anchor_age"] >= AGE_OF_THE_OLDEST
            counts["stays_of_unknown_outcome"] += stay.died is None
            counts["stays_died_without_deathtime"] += stay.died is True and bool(np.isnat(stay.death))
            counts["stays_survived_with_deathtime"] += stay.died is False and not bool(np.isnat(stay.death))
            counts["stays_left_unit_alive_then_died"] += stay.died is True and bool(stay.death > stay.end)
    if not found:
        raise ValueError(f"{icustays}: no stay is left; {left_out(counts)}")
    ordered = [sorted(found[subject], key=lambda stay: (stay.start, stay.stay)) for subject in sorted(found)]
    return Cohort(_with_history(ordered, ends) if history else ordered, counts)


def _with_history(patients: list[list[Stay]], ends: dict[str, dict[str, Any]]) -> list[list[Stay]]:
    """The stays with the admissions that had ended before each; one that has no time of discharge had not."""
    discharges: dict[str, list[tuple[np.datetime64, str]]] = {}
    for admission, row in ends.items():
        if row["dischtime"] is not None:
            discharges.setdefault(row["subject_id"], []).append((np.datetime64(row["dischtime"], "us"), admission))

    def earlier(stay: Stay) -> tuple[str, ...]:
        own = discharges.get(stay.subject, ())
        return tuple(admission for time, admission in own if time <= stay.start and admission != stay.admission)

    return [[replace(stay, earlier=earlier(stay)) for stay in own] for own in patients]


def left_out(counts: Counter[str]) -> str:
    """The sentence of how many stays were left out, and why."""
    reasons = [f"{counts[name]} {words}" for name, words in REASONS.items() if counts[name]]
    total = sum(counts[name] for name in REASONS)
    return f"{total} of {counts['stays_in_icustays']} stays left out" + (f": {'; '.join(reasons)}" if reasons else "")


def _by_id(file: Path, columns: dict[str, str], key: str) -> dict[str, dict[str, Any]]:
    """Rows of a table by their id."""
    table = read_small(file, columns)
    for name in set(IDS) & set(columns):
        table[name] = [None if cell is None else plain_id(cell) for cell in table[name]]
    rows: dict[str, dict[str, Any]] = {}
    for number, cells in enumerate(zip(*table.values(), strict=True), 1):
        row = dict(zip(table, cells, strict=True))
        if row[key] is None:
            raise ValueError(f"{file}, row {number}: no {key}")
        if row[key] in rows:
            raise ValueError(f"{file}, row {number}: {key} {row[key]} is there twice; which row is the right one?")
        rows[row[key]] = row
    return rows


def _stay(row: dict[str, Any], person: dict[str, Any] | None, end: dict[str, Any] | None) -> Stay | str:
    """The stay, or why there is none."""
    if person is None:
        return "stays_without_patient"
    if end is None:
        return "stays_without_admission"
    if row["intime"] is None or row["outtime"] is None or row["outtime"] < row["intime"]:
        return "stays_without_times"
    if person["anchor_age"] is None or person["anchor_year"] is None:
        return "stays_without_age"
    return Stay(
        stay=row["stay_id"],
        subject=row["subject_id"],
        admission=row["hadm_id"],
        start=np.datetime64(row["intime"], "us"),
        end=np.datetime64(row["outtime"], "us"),
        male={"M": 1.0, "F": 0.0}.get((person["gender"] or "").strip(), np.nan),
        age=float(person["anchor_age"] + row["intime"].year - person["anchor_year"]),
        died=_died(end),
        death=np.datetime64(end["deathtime"] or "NaT", "us"),
    )


def _died(admission: dict[str, Any]) -> bool | None:
    """The flag; where it is empty, a time of death says as much."""
    if admission["hospital_expire_flag"] is None:
        return True if admission["deathtime"] is not None else None
    return bool(admission["hospital_expire_flag"])


def _left_out(stay: Stay, shortest_h: float | None) -> str | None:
    """Why a stay takes no part, if it does not. Who dies at the very end of the window was alive in it."""
    if stay.age < ADULT:
        return "stays_not_adult"
    if shortest_h is None:
        return None
    horizon = stay.start + np.timedelta64(round(shortest_h * 3600), "s")
    if stay.end < horizon:
        return "stays_too_short"
    return "stays_died_in_window" if stay.death < horizon else None  # NaT compares as False


def with_parts(cohort: Cohort, listed: PartList) -> list[list[Stay]]:
    """The stays with the parts of a list; what does not fit is counted.

    Raises:
        ValueError: it lists none of the stays.
    """
    patients, counts, used = [], cohort.counts, set[str]()
    for own in cohort.patients:
        placed = []
        for stay in own:
            name = stay.stay if listed.key == "stay_id" else stay.subject
            parts = listed.parts.get(name)
            if parts is not None:
                used.add(name)
            elif listed.tests_only:
                parts = {"default": hashed_part(stay.subject, SHARES_BUT_TEST)}
            placed.append(replace(stay, parts=parts or {}))
        for split in listed.splits:
            counts[f"stays_without_part.{split}"] += sum(split not in stay.parts for stay in placed)
            counts[f"patients_in_several_parts.{split}"] += len({stay.parts.get(split) for stay in placed} - {None}) > 1
        patients.append(placed)
    counts["split_ids_not_packed"] += len(listed.parts.keys() - used)
    counts["split_ids_twice"] += listed.twice
    if not used:
        raise ValueError(f"splits file {listed.file} lists none of the stays; is {listed.key} its column of ids?")
    return patients
