"""MIMIC-IV: stays in intensive care with vital signs, laboratory values, radiology reports, chest X-rays and ECGs.

Johnson et al. (Scientific Data 2023), PhysioNet. Expects the official layout below one folder (plain or ``.csv.gz``):
``hosp/{patients,admissions,labevents}``, ``icu/{icustays,chartevents}``, and whichever there are of ``note/radiology``,
``cxr/mimic-cxr-2.0.0-metadata`` with ``cxr/files/p10/p10000032/s50414267/<dicom>.jpg``, ``ecg/record_list`` with its
``ecg/files/...``, ``hosp/{emar,prescriptions,diagnoses_icd,procedures_icd}``,
``icu/{inputevents,procedureevents,d_items}`` and, for phenotypes, a table of definitions.

All reports, frontal X-rays and ECGs of the window are objects with their times, in hours since the stay began;
``max_notes=5`` keeps the last five reports, as FuseMoE does. Drugs and procedures are codes at their times, ``history``
the codes of earlier admissions. Notes, X-rays and ECGs are closed data: their readers are tested on files in the
official layout that the tests write; vital signs, laboratory values and diagnoses on the open demo of MIMIC-IV 2.2.

What is known when: a sample sees what had a time of its own until the end of its window (hour 48, or the stay's end).
A report counts from when it was stored, not from when its picture was taken (``notes_at``); X-rays and ECGs from when
they were taken; a laboratory value from when the specimen was taken, as all published benchmarks have it, although the
result is there up to some hours later (``labs_at=storetime`` waits for it); an infusion, a prescription and a procedure
from its start, without amounts, which are known at its end. Diagnoses and procedures by ICD are written down after an
admission, for the bill: those of the stay's own admission, also where an earlier stay belongs to it, are labels (of
phenotypes) and never an input. Those of an admission that ended before the stay are taken as known, though their
writing down may take weeks: who comes back within days may have had none yet. Clocks of ECG carts may be wrong.

Tasks as FuseMoE's published preparation labels them (arXiv 2402.03226, section 5, and its code). From the first 48
hours of stays in the unit that last 48 hours or more: ``ihm_48``, the patient dies in hospital in this admission,
whenever that is, also after the stay and for an earlier stay of the same admission; ``los_48``, the stay ends before
hour 96 and the patient does not die in hospital. So who leaves the unit alive before hour 96 and dies later in the
admission is 0, and with ``los_death=unit`` 1: then only death before the end of the stay counts. From whole stays:
``phenotypes``, 25 groups of diagnoses of the stay's admission. FuseMoE counts every ICD-9 equivalent of an ICD-10 code
(``icd10_several=all``), by default the first row of the table does. Who dies before hour 48 is not in the task (FuseMoE
keeps such a stay if its outtime says 48 hours). Parts are 70/15/15 by patient (FuseMoE: by stay), or those of a list.

``static`` is the age at the stay in years (anchor_age + year of intime - anchor_year; anchor_age is 91 for everyone
above 89) and 1 for male.

Traps: laboratory and note rows often name no admission, so rows are matched by patient and time; temperatures come in
two units; times of X-rays are numbers that lost their leading zeros; the leads of its ECGs are not in the usual order.
Whatever is left out is counted in the report, of stays and rows alike, and the numbers add up (``..._outside``: in no
window of a stay that is packed, or of no admission before one).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_shards.crew import Here
from data_shards.paths import absolute_path
from data_shards.records.record import Codes, Record, Value
from data_shards.records.vocabulary import VocabularyRule
from data_shards.scratch import Scratch
from data_shards.sources.base import Source, SourceOptions, hashed_part
from data_shards.sources.mimic4.codes import (
    CODE_TABLES,
    DRUG_TABLES,
    HISTORY,
    TIMED_CODES,
    history,
    item_labels,
    timed_codes,
    with_codes,
)
from data_shards.sources.mimic4.cohort import COHORT_TABLES, REASONS, Stay, left_out, read_cohort, with_parts
from data_shards.sources.mimic4.diagnoses import CountedRows, lost_zeros, read_phenotypes
from data_shards.sources.mimic4.events import PatientRows, of_record, series, when_known
from data_shards.sources.mimic4.items import LABS, VITALS
from data_shards.sources.mimic4.options import Mimic4Options
from data_shards.sources.mimic4.schema import mimic4_schema
from data_shards.sources.mimic4.studies import Studies, study_times, whole_studies
from data_shards.sources.mimic4.tables import DIAGNOSES, EVENTS, ITEMS, RowFilter, event_tables, find_table, unbalanced
from data_shards.sources.part_lists import read_part_list
from data_shards.sources.readers.spill import Sorting, Spill, sort_out

SHARES = (("train", 0.7), ("val", 0.15), ("test", 0.15))
UNIT_PATIENTS = 200
SERIES, STUDIES = {"vitals": VITALS, "labs": LABS}, ("notes", "cxr", "ecg")
_LABELS = "diagnoses"  # the table of diagnoses once more, for the labels of phenotypes


class Mimic4(Source):
    """Stays as records; see the module's text."""

    Options: ClassVar[type[SourceOptions]] = Mimic4Options

    def __init__(self, options: Mimic4Options) -> None:
        super().__init__(options)
        self.options: Mimic4Options = options
        self.folder = absolute_path(options.path)
        self.scratch = absolute_path(options.scratch) if options.scratch else None
        self.window = 48.0 if options.task == "48h" else options.longest_h
        for name in COHORT_TABLES:
            find_table(self.folder, name)
        past = HISTORY if options.history else ()
        procedures = TIMED_CODES["procedures"] if options.procedures else ()
        names = (*SERIES, *STUDIES, *DRUG_TABLES[options.drugs], *procedures, *past)
        self.events = event_tables(self.folder, names)
        self.labels = item_labels(self.folder)
        self.studies = Studies(self.folder, options)
        self.phenotypes = None
        if options.task == "phenotypes":
            self.phenotypes = read_phenotypes(options.definitions, options.icd10, options.icd10_several)
            place, columns = DIAGNOSES
            self.events[_LABELS] = (find_table(self.folder, place), columns)
        keys = ["stay_id", "subject_id"]
        self.part_list = read_part_list(absolute_path(options.splits), keys) if options.splits else None
        phenotypes = None if self.phenotypes is None else tuple(self.phenotypes.names)
        self.schema = mimic4_schema(self.events, options, self.window, phenotypes)
        rule = VocabularyRule(options.min_count)
        self.vocabulary_rules = {spec.name: rule for spec in self.schema.modalities if spec.kind == "codes"}
        self.stays: list[list[Stay]] = []  # of each patient
        self.counts = Counter[str]()  # of what was left out before a unit was read
        self._spills: dict[str, Spill] = {}
        self._temporary: Scratch | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For a worker process: it gets stays with its unit, and must not remove the temporary folder."""
        return {**self.__dict__, "_temporary": None, "stays": [], "part_list": None}

    def units(self) -> list[tuple[int, list[list[Stay]]]]:
        """(number of the first patient, stays of each) of every piece of the patients.

        Reads every table once, and keeps the rows that are used, on disk.
        """
        if self._temporary is None:
            shortest_h = None if self.phenotypes is not None else self.window
            cohort = read_cohort(self.folder, shortest_h, bool(set(HISTORY) & set(self.events)))
            self.counts, self.stays = cohort.counts, cohort.patients
            if self.part_list is not None:
                self.stays = with_parts(cohort, self.part_list)
            self._temporary = Scratch("mimic4", self.scratch)
            for name in self.events:
                self._spill(name, Path(self._temporary.name) / name)
        return [(a, self.stays[a : a + UNIT_PATIENTS]) for a in range(0, len(self.stays), UNIT_PATIENTS)]

    def _spill(self, name: str, out: Path) -> None:
        """Sort the rows of one table that can be of use out by patient, and count the others."""
        (file, columns), options = self.events[name], self.options
        subjects = pa.array([own[0].subject for own in self.stays])
        rows = RowFilter(name, subjects)
        keep: RowFilter | CountedRows = rows
        if self.phenotypes is not None and name == _LABELS:
            keep = CountedRows(rows, pa.array(sorted({stay.admission for own in self.stays for stay in own})))
        out.mkdir()
        # Filters count what they leave out, so this process does it.
        table = Sorting([file], columns, "subject_id", True, keep)
        (made,) = sort_out([table], subjects, UNIT_PATIENTS, out, Here())
        self._spills[name] = made
        self.counts.update(rows.counts)
        self.counts.update({f"{name}_{what}": count for what, count in made.notes.items()})
        if isinstance(keep, CountedRows) and self.phenotypes is not None:
            self.counts.update(keep.counts)
            self.counts.update(self.phenotypes.count(keep.codes, file, options.icd9_zeros == "restore"))
        elif name in ITEMS and made.empty:
            raise ValueError(
                f"{file}: none of its {rows.counts[f'{name}_rows']:,} rows is an observation of a patient with a stay; "
                f"are the tables of one release? Left out: {dict(rows.counts)}"
            )

    def read(self, unit: tuple[int, list[list[Stay]]], notes: Counter[str]) -> Iterator[Record]:
        """Stays of one piece's patients, in order."""
        for own, rows, diagnoses in self._patients(unit, notes):
            for stay in own:
                values = self._numbers_and_codes(stay, rows, notes)
                if values is None:
                    continue
                values |= self.studies.of_stay(stay, self._until(stay), rows, notes)
                if not np.isnan(stay.male):
                    values["static"] = np.array([stay.age, stay.male], np.float32)
                targets = self._targets(stay, diagnoses)
                notes["stays_packed"] += 1
                yield Record(f"stay-{stay.stay}", values, targets, self._parts(stay), group=stay.subject)
            for one in rows.values():
                one.count(notes)

    def codes(
        self, unit: tuple[int, list[list[Stay]]]
    ) -> Iterator[tuple[Mapping[str, str], Mapping[str, Sequence[str]]]]:
        """Parts and codes of each stay that is packed; no picture and no ECG is read for it."""
        notes = Counter[str]()
        for own, rows, _ in self._patients(unit, notes):
            for stay in own:
                values = self._numbers_and_codes(stay, rows, notes)
                if values is not None:
                    found = {name: value.codes for name, value in values.items() if isinstance(value, Codes)}
                    yield self._parts(stay), found

    def _patients(
        self, unit: tuple[int, list[list[Stay]]], notes: Counter[str]
    ) -> Iterator[tuple[list[Stay], dict[str, PatientRows], pa.Table | None]]:
        """Stays, rows by table, and diagnoses for the labels, of each patient of a piece."""
        first, patients = unit
        tables = {name: made.rows(first // UNIT_PATIENTS) for name, made in self._spills.items()}
        for place, own in enumerate(patients):
            of_patient = {name: of_record(t, first + place) for name, t in tables.items() if t is not None}
            diagnoses = of_patient.pop(_LABELS, None)
            yield own, {name: self._rows(name, table, notes) for name, table in of_patient.items()}, diagnoses

    def _rows(self, name: str, table: pa.Table, notes: Counter[str]) -> PatientRows:
        """Rows of a patient that have what it takes, with their times; the others are counted."""
        if name in CODE_TABLES:
            table = with_codes(name, table, notes)
        elif name in STUDIES:
            table = whole_studies(name, table, notes)
        if (name, self.options.labs_at) == ("labs", "storetime") or (name, self.options.notes_at) == (
            "notes",
            "storetime",
        ):
            table = when_known(name, table, notes)
        if name in STUDIES:
            return PatientRows(name, table, study_times(name, table))
        time = EVENTS[name].time
        return PatientRows(name, table, table[time].to_numpy() if time else np.full(len(table), np.datetime64("NaT")))

    def report(self, notes: Counter[str]) -> dict[str, Any]:
        """Options, what was counted, and which of the optional tables were there.

        Raises:
            ValueError: stays or rows of a table are neither packed nor counted as left out.
        """
        notes = Counter({name: count for name, count in (notes + self.counts).items() if count})
        lost = notes["stays_in_icustays"] - notes["stays_packed"] - sum(notes[reason] for reason in REASONS)
        rows = {name: unbalanced(name, notes) for name in self.events if name != _LABELS}
        if notes["stays_packed"] and (lost or any(rows.values())):
            raise ValueError(f"the counts of mimic4 do not add up: {lost} stays and rows {rows} are unaccounted for")
        zeros = lost_zeros(notes)
        by_list = None if self.part_list is None else self.part_list.file.name
        return super().report(notes) | {
            "tables": {name: file.name for name, (file, _) in sorted(self.events.items())},
            "window_hours": self.window,
            "left_out": left_out(notes),
            "splits": by_list or "70/15/15 by hash of the patient",
            **({"icd9": zeros} if zeros else {}),
        }

    def _until(self, stay: Stay) -> np.datetime64:
        """End of the stay's window."""
        return min(stay.start + np.timedelta64(round(self.window * 3600), "s"), stay.end)

    def _parts(self, stay: Stay) -> dict[str, str]:
        return stay.parts if self.options.splits else {"default": hashed_part(stay.subject, SHARES)}

    def _numbers_and_codes(
        self, stay: Stay, rows: dict[str, PatientRows], notes: Counter[str]
    ) -> dict[str, Value] | None:
        """Series and codes of the window; None if there is no vital sign and no laboratory value, which is counted."""
        values, until = dict[str, Value](), self._until(stay)
        for name, variables in SERIES.items():
            own = rows[name].take(stay.start, until) if name in rows else None
            found = None if own is None else series(own, name, variables, stay, notes)
            if found is not None:
                values[name] = found
        if not values:
            notes["stays_without_observation"] += 1
            return None
        for name, tables in TIMED_CODES.items():
            codes = timed_codes(rows, tables, stay, until, self.labels, notes)
            values |= {} if codes is None else {name: codes}
        past = history(rows, stay, notes)
        return values | ({} if past is None else {"history": past})

    def _targets(self, stay: Stay, diagnoses: pa.Table | None) -> dict[str, np.ndarray | float | None]:
        if self.phenotypes is None:
            died = None if stay.died is None else float(stay.died)
            return {"ihm_48": died, "los_48": stay.left_alive(self.options.los_death)}
        own = [] if diagnoses is None else diagnoses.filter(pc.equal(diagnoses["hadm_id"], stay.admission)).to_pylist()
        return {"phenotypes": self.phenotypes.labels([(row["icd_code"], row["icd_version"]) for row in own])}
