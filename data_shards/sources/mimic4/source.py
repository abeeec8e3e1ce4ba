"""MIMIC-IV: stays in intensive care with vital signs, laboratory values, radiology reports, chest X-rays and ECGs.

Johnson et al. (Scientific Data 2023), PhysioNet. Expects the official layout below one folder (plain or ``.csv.gz``):
``hosp/{patients,admissions,labevents}``, ``icu/{icustays,chartevents}``, and whichever there are of ``note/radiology``,
``cxr/mimic-cxr-2.0.0-metadata`` with ``cxr/files/p10/p10000032/s50414267/<dicom>.jpg``, ``ecg/record_list`` with its
``ecg/files/...`` and, for phenotypes, ``hosp/diagnoses_icd`` with a table of definitions.

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
Whatever is left out is counted in the report, of stays and of rows alike, and the numbers add up.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_shards.paths import absolute_path
from data_shards.records.record import Record, Series
from data_shards.records.schema import DatasetSchema, ModalitySpec, TaskSpec
from data_shards.sources.base import Source, SourceOptions, hashed_part
from data_shards.sources.mimic4.cohort import COHORT_TABLES, REASONS, Stay, left_out, read_cohort, with_parts
from data_shards.sources.mimic4.diagnoses import CountedRows, lost_zeros, read_phenotypes
from data_shards.sources.mimic4.events import PatientRows, of_record, series
from data_shards.sources.mimic4.items import LABS, VITALS
from data_shards.sources.mimic4.options import Mimic4Options
from data_shards.sources.mimic4.recordings import LEADS, RATE
from data_shards.sources.mimic4.studies import MOST_TEXT, joined_reports, last_ecg, last_picture, patient_rows
from data_shards.sources.mimic4.tables import DIAGNOSES, ITEMS, RowFilter, event_tables, find_table, unbalanced
from data_shards.sources.part_lists import read_part_list
from data_shards.sources.readers.pictures import read_picture
from data_shards.sources.readers.spill import Spill, spill

SHARES = (("train", 0.7), ("val", 0.15), ("test", 0.15))
UNIT_PATIENTS = 200
Values = dict[str, Series | np.ndarray | str]


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
        self.events = event_tables(self.folder)
        self.phenotypes = None
        if options.task == "phenotypes":
            self.phenotypes = read_phenotypes(options.definitions, options.icd10, options.icd10_several)
            place, columns = DIAGNOSES
            self.events["diagnoses"] = (find_table(self.folder, place), columns)
        keys = ["stay_id", "subject_id"]
        self.part_list = read_part_list(absolute_path(options.splits), keys) if options.splits else None
        self.schema = self._schema()
        self.stays: list[list[Stay]] = []  # of each patient
        self.counts = Counter[str]()  # of what was left out before a unit was read
        self._spills: dict[str, Spill] = {}
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For a worker process: it gets stays with its unit, and must not remove the temporary folder."""
        return {**self.__dict__, "_temporary": None, "stays": [], "part_list": None}

    def units(self) -> list[tuple[int, list[list[Stay]]]]:
        """(number of the first patient, stays of each) of every piece of the patients.

        Reads every table once, and keeps the rows that are used, on disk.
        """
        if self._temporary is None:
            cohort = read_cohort(self.folder, None if self.phenotypes is not None else self.window)
            self.counts, self.stays = cohort.counts, cohort.patients
            if self.part_list is not None:
                self.stays = with_parts(cohort, self.part_list)
            self._temporary = tempfile.TemporaryDirectory(prefix="fleximoe-mimic4-", dir=self.scratch)
            for name in self.events:
                self._spill(name, Path(self._temporary.name) / f"{name}.arrow")
        return [(a, self.stays[a : a + UNIT_PATIENTS]) for a in range(0, len(self.stays), UNIT_PATIENTS)]

    def _spill(self, name: str, out: Path) -> None:
        """Sort the rows of one table that can be of use out by patient, and count the others."""
        (file, columns), options = self.events[name], self.options
        subjects = pa.array([own[0].subject for own in self.stays])
        rows = RowFilter(name, subjects)
        keep: RowFilter | CountedRows = rows
        if self.phenotypes is not None and name == "diagnoses":
            keep = CountedRows(rows, pa.array(sorted({stay.admission for own in self.stays for stay in own})))
        made = spill([file], columns, "subject_id", subjects, UNIT_PATIENTS, out, True, keep)
        self._spills[name] = made
        self.counts.update(rows.counts)
        self.counts.update({f"{name}_{what}": count for what, count in made.notes.items()})
        if isinstance(keep, CountedRows) and self.phenotypes is not None:
            self.counts.update(keep.counts)
            self.counts.update(self.phenotypes.count(keep.codes, file, options.icd9_zeros == "restore"))
        elif name in ITEMS and not made.places:
            raise ValueError(
                f"{file}: none of its {rows.counts[f'{name}_rows']:,} rows is an observation of a patient with a stay; "
                f"are the tables of one release? Left out: {dict(rows.counts)}"
            )

    def read(self, unit: tuple[int, list[list[Stay]]], notes: Counter[str]) -> Iterator[Record]:
        """Stays of one piece's patients, in order."""
        first, patients = unit
        tables = {name: made.rows(first // UNIT_PATIENTS) for name, made in self._spills.items()}
        for place, own in enumerate(patients):
            tables_of = {name: of_record(t, first + place) for name, t in tables.items() if t is not None}
            diagnoses = tables_of.pop("diagnoses", None)
            rows = {name: patient_rows(name, table, notes) for name, table in tables_of.items()}
            for stay in own:
                record = self._record(stay, rows, diagnoses, notes)
                if record is not None:
                    notes["stays_packed"] += 1
                    yield record
            for one in rows.values():
                one.count(notes)

    def report(self, notes: Counter[str]) -> dict[str, Any]:
        """Options, what was counted, and which of the optional tables were there.

        Raises:
            ValueError: stays or rows of a table are neither packed nor counted as left out.
        """
        notes = Counter({name: count for name, count in (notes + self.counts).items() if count})
        lost = notes["stays_in_icustays"] - notes["stays_packed"] - sum(notes[reason] for reason in REASONS)
        rows = {name: unbalanced(name, notes) for name in ITEMS}
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

    def _schema(self) -> DatasetSchema:
        about: dict[str, Any] = {"time_unit": "hours", "horizon": self.window}
        side, rate = self.options.image_side, RATE / self.options.ecg_step
        possible = {
            "vitals": ModalitySpec("vitals", "series", channels=tuple(VITALS), **about),
            "labs": ModalitySpec("labs", "series", channels=tuple(LABS), **about),
            "notes": ModalitySpec("notes", "text", max_length=MOST_TEXT, description="radiology reports, by time"),
            "cxr": ModalitySpec("cxr", "image", shape=(1, side, side), dtype="uint8", description="last frontal X-ray"),
            "ecg": ModalitySpec("ecg", "waveform", channels=LEADS, rate=rate, max_length=10_000, unit="mV"),
        }  # fmt: skip
        modalities = [spec for name, spec in possible.items() if name in self.events]
        static = "age at the stay in years, 1 for male"
        modalities.append(ModalitySpec("static", "vector", channels=("age", "male"), description=static))
        if self.phenotypes is not None:
            tasks = [TaskSpec("phenotypes", "multilabel", classes=tuple(self.phenotypes.names))]
        else:
            alive = "dies in hospital" if self.options.los_death == "admission" else "dies in the unit"
            left = f"the stay ends before hour 96 and the patient does not {alive.replace('dies', 'die')}"
            tasks = [
                TaskSpec("ihm_48", "binary", classes=("survived", "died"), description="dies in hospital"),
                TaskSpec("los_48", "binary", classes=("stayed", "left"), description=left),
            ]
        return DatasetSchema("mimic4", tuple(modalities), tuple(tasks))

    def _record(
        self, stay: Stay, rows: dict[str, PatientRows], diagnoses: pa.Table | None, notes: Counter[str]
    ) -> Record | None:
        values: Values = {}
        until = min(stay.start + np.timedelta64(round(self.window * 3600), "s"), stay.end)
        for name, variables in (("vitals", VITALS), ("labs", LABS)):
            own = rows[name].take(stay.start, until) if name in rows else None
            found = None if own is None else series(own, name, variables, stay, notes)
            if found is not None:
                values[name] = found
        if not values:
            notes["stays_without_observation"] += 1
            return None
        values |= self._others(stay, until, rows, notes)
        if not np.isnan(stay.male):
            values["static"] = np.array([stay.age, stay.male], np.float32)
        parts = stay.parts if self.options.splits else {"default": hashed_part(stay.subject, SHARES)}
        return Record(f"stay-{stay.stay}", values, self._targets(stay, diagnoses), parts, group=stay.subject)

    def _others(self, stay: Stay, until: np.datetime64, rows: dict[str, PatientRows], notes: Counter[str]) -> Values:
        """Notes, the last X-ray and the last ECG of the window."""
        values: Values = {}
        taken = {name: rows[name].take(stay.start, until) for name in ("notes", "cxr", "ecg") if name in rows}
        own = {name: table for name, table in taken.items() if table is not None}
        if "notes" in own:
            values["notes"] = joined_reports(own["notes"], notes)
        if "cxr" in own:
            picture, side = last_picture(own["cxr"], self.folder, notes), self.options.image_side
            values["cxr"] = read_picture(picture, f"picture {picture}", (1, side, side), True, notes)
        if "ecg" in own:
            options = self.options
            drop = options.ecg_unusable == "drop"
            ecg = last_ecg(own["ecg"], self.folder, options.ecg_step, options.ecg_resample, drop, notes)
            values |= {} if ecg is None else {"ecg": ecg}
        return values

    def _targets(self, stay: Stay, diagnoses: pa.Table | None) -> dict[str, np.ndarray | float | None]:
        if self.phenotypes is None:
            died = None if stay.died is None else float(stay.died)
            return {"ihm_48": died, "los_48": stay.left_alive(self.options.los_death)}
        own = [] if diagnoses is None else diagnoses.filter(pc.equal(diagnoses["hadm_id"], stay.admission)).to_pylist()
        return {"phenotypes": self.phenotypes.labels([(row["icd_code"], row["icd_version"]) for row in own])}
