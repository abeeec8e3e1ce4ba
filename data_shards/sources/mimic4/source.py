"""MIMIC-IV: stays in intensive care with vital signs, laboratory values, radiology reports, chest X-rays and ECGs.

Johnson et al. (Scientific Data 2023), PhysioNet. Expects the official layout below one folder (plain or ``.csv.gz``):
``hosp/{patients,admissions,labevents}``, ``icu/{icustays,chartevents}``, and whichever there are of ``note/radiology``,
``cxr/mimic-cxr-2.0.0-metadata`` with ``cxr/files/p10/p10000032/s50414267/<dicom>.jpg``, ``ecg/record_list`` with its
``ecg/files/...`` and, for phenotypes, ``hosp/diagnoses_icd`` with a table of definitions.

Tasks as in FuseMoE (arXiv 2402.03226, section 5): from the first 48 hours of stays that last as long, death in hospital
(``ihm_48``) and discharge alive within the following 48 hours (``los_48``); from whole stays, 25 phenotypes. Parts are
70/15/15 by patient.

Traps: laboratory and note rows often name no admission, so they are matched by patient and time; temperatures come in
two units; times of X-rays are numbers that lost their leading zeros; who dies before the 48th hour is not in the task.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data_shards.paths import absolute_path
from data_shards.records.record import Record, Series
from data_shards.records.schema import DatasetSchema, ModalitySpec, TaskSpec
from data_shards.sources.base import Source, SourceOptions, hashed_part
from data_shards.sources.mimic4.cohort import COHORT_TABLES, HOUR, Stay, read_cohort
from data_shards.sources.mimic4.items import LABS, VITALS, celsius, item_channels, plausible, study_time
from data_shards.sources.mimic4.recordings import Ecg, find_table, maybe_table, read_ecg, read_phenotypes
from data_shards.sources.readers.pictures import read_picture
from data_shards.sources.readers.spill import Spill, spill

SHARES = (("train", 0.7), ("val", 0.15), ("test", 0.15))
UNIT_PATIENTS = 200
FRONTAL = ("AP", "PA")


class Mimic4Options(SourceOptions):
    """Options of this source."""

    path: str = Field(description="folder with hosp/, icu/ and, where there are, note/, cxr/ and ecg/")
    task: Literal["48h", "phenotypes"] = Field(
        "48h", description="48h: mortality and discharge from the first 48 hours; phenotypes: 25 diagnoses, whole stays"
    )
    definitions: str | None = Field(
        None, description="phenotypes: YAML of name -> codes (ICD-9), e.g. hcup_ccs_2015_definitions.yaml"
    )
    icd10: str | None = Field(None, description="phenotypes: CSV with columns icd10cm and icd9cm")
    longest_h: float = Field(240, gt=48, description="phenotypes: hours of a stay that are read at most")
    image_side: int = Field(64, ge=8, le=512, description="X-rays are made this high and wide, in pixels")
    ecg_step: int = Field(5, ge=1, description="samples (500 Hz) of an ECG that are averaged into one")
    scratch: str | None = Field(None, description="folder for temporary copies of the rows used; default: the system's")


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
        self.events = _event_tables(self.folder)
        self.phenotypes = read_phenotypes(options.definitions, options.icd10) if options.task == "phenotypes" else None
        if self.phenotypes is not None:
            self.events["diagnoses"] = (find_table(self.folder, "hosp/diagnoses_icd"), DIAGNOSES)
        self.schema = self._schema()
        self.stays: list[list[Stay]] = []  # of each patient
        self._spills: dict[str, Spill] = {}
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For a worker process: it gets stays with its unit, and must not remove the temporary folder."""
        return {**self.__dict__, "_temporary": None, "stays": []}

    def units(self) -> list[tuple[int, list[list[Stay]]]]:
        """(number of the first patient, stays of each) of every piece of the patients.

        Reads every table once, and keeps the rows that are used, on disk.
        """
        if self._temporary is None:
            self.stays = read_cohort(self.folder, None if self.phenotypes is not None else self.window)
            subjects = pa.array([own[0].subject for own in self.stays])
            self._temporary = tempfile.TemporaryDirectory(prefix="fleximoe-mimic4-", dir=self.scratch)
            for name, (file, columns) in self.events.items():
                out = Path(self._temporary.name) / f"{name}.arrow"
                keep = partial(_wanted_rows, items=ITEMS.get(name), subjects=subjects)
                self._spills[name] = spill([file], columns, "subject_id", subjects, UNIT_PATIENTS, out, True, keep)
        return [(a, self.stays[a : a + UNIT_PATIENTS]) for a in range(0, len(self.stays), UNIT_PATIENTS)]

    def read(self, unit: tuple[int, list[list[Stay]]], notes: Counter[str]) -> Iterator[Record]:
        """Stays of one piece's patients, in order."""
        first, patients = unit
        tables = {name: made.rows(first // UNIT_PATIENTS) for name, made in self._spills.items()}
        for place, own in enumerate(patients):
            rows = {name: _of_record(table, first + place) for name, table in tables.items() if table is not None}
            for stay in own:
                record = self._record(stay, rows, notes)
                if record is not None:
                    yield record

    def report(self, notes: Counter[str]) -> dict[str, Any]:
        """Options, counts, and which of the optional tables were there."""
        return super().report(notes) | {"tables": sorted(self.events), "window_hours": self.window}

    def _schema(self) -> DatasetSchema:
        about: dict[str, Any] = {"time_unit": "hours", "horizon": self.window}
        side = self.options.image_side
        possible = {
            "vitals": ModalitySpec("vitals", "series", channels=tuple(VITALS), **about),
            "labs": ModalitySpec("labs", "series", channels=tuple(LABS), **about),
            "notes": ModalitySpec("notes", "text", max_length=32_768, description="radiology reports in order of time"),
            "cxr": ModalitySpec("cxr", "image", shape=(1, side, side), dtype="uint8", description="last frontal X-ray"),
            "ecg": ModalitySpec(
                "ecg", "waveform", shape=(12,), rate=500 / self.options.ecg_step, max_length=10_000, unit="mV"
            ),
        }  # fmt: skip
        modalities = [spec for name, spec in possible.items() if name in self.events]
        modalities.append(ModalitySpec("static", "vector", shape=(2,), channels=("age", "male")))
        if self.phenotypes is not None:
            tasks = (TaskSpec("phenotypes", "multilabel", classes=tuple(self.phenotypes.names)),)
        else:
            tasks = (
                TaskSpec("ihm_48", "binary", classes=("survived", "died"), description="death in hospital"),  # type: ignore[assignment]
                TaskSpec("los_48", "binary", classes=("stayed", "left"), description="discharged alive before hour 96"),
            )
        return DatasetSchema("mimic4", tuple(modalities), tasks)

    def _record(self, stay: Stay, rows: dict[str, pa.Table], notes: Counter[str]) -> Record | None:
        values: dict[str, Series | np.ndarray | str] = {}
        until = min(stay.start + np.timedelta64(int(self.window * 3600), "s"), stay.end)
        for name, variables in (("vitals", VITALS), ("labs", LABS)):
            own = _between(rows.get(name), "charttime", stay.start, until)
            found = None if own is None else _series(own, name, variables, stay.start, notes)
            if found is not None:
                values[name] = found
        if not values:
            notes["stays_without_observation"] += 1
            return None
        values |= self._others(stay, until, rows, notes)
        values["static"] = np.array([stay.age, stay.male], np.float32)
        parts = {"default": hashed_part(stay.subject, SHARES)}
        return Record(f"stay-{stay.stay}", values, self._targets(stay, rows), parts, group=stay.subject)

    def _others(
        self, stay: Stay, until: np.datetime64, rows: dict[str, pa.Table], notes: Counter[str]
    ) -> dict[str, Series | np.ndarray | str]:
        """Notes, the last X-ray and the last ECG of the window."""
        values: dict[str, Series | np.ndarray | str] = {}
        reports = _between(rows.get("notes"), "charttime", stay.start, until)
        if reports is not None:
            texts = [text for text in reports.sort_by("charttime")["text"].to_pylist() if text]
            joined = "\n".join(texts).encode()
            if len(joined) > 32_768:
                notes["notes_cut"] += 1
            values |= {"notes": joined[:32_768].decode(errors="ignore")} if texts else {}
        picture = self._last_picture(rows.get("cxr"), stay.start, until)
        if picture is not None:
            side = self.options.image_side
            values["cxr"] = read_picture(picture, f"picture {picture}", (1, side, side), True, notes)
        ecgs = _between(rows.get("ecg"), "ecg_time", stay.start, until)
        if ecgs is not None:
            path = ecgs.sort_by("ecg_time")["path"].to_pylist()[-1]
            ecg: Ecg = read_ecg(self.folder / "ecg" / path, self.options.ecg_step)
            notes["ecg_gaps"] += ecg.gaps
            values["ecg"] = ecg.values_LC
        return values

    def _last_picture(self, rows: pa.Table | None, start: np.datetime64, until: np.datetime64) -> Path | None:
        if rows is None or not len(rows):
            return None
        rows = rows.filter(pc.is_in(rows["ViewPosition"], value_set=pa.array(FRONTAL)))
        when = study_time(rows["StudyDate"].to_numpy(), rows["StudyTime"].to_numpy())
        inside = np.flatnonzero((when >= start) & (when <= until))
        if not len(inside):
            return None
        row = rows.slice(int(inside[np.argmax(when[inside])]), 1).to_pylist()[0]
        subject, study = row["subject_id"], row["study_id"]
        return (
            self.folder / "cxr" / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}" / f"{row['dicom_id']}.jpg"
        )

    def _targets(self, stay: Stay, rows: dict[str, pa.Table]) -> dict[str, np.ndarray | float | None]:
        if self.phenotypes is None:
            alive_out = not stay.died and stay.end < stay.start + 96 * HOUR
            return {"ihm_48": float(stay.died), "los_48": float(alive_out)}
        table = rows.get("diagnoses")
        own = [] if table is None else table.filter(pc.equal(table["hadm_id"], stay.admission)).to_pylist()
        return {"phenotypes": self.phenotypes.labels([(row["icd_code"], row["icd_version"]) for row in own])}


EVENT = {"charttime": "date", "itemid": "number", "valuenum": "number"}
DIAGNOSES = {"hadm_id": "text", "icd_code": "text", "icd_version": "text"}
ITEMS = {"vitals": sorted(item_channels(VITALS)), "labs": sorted(item_channels(LABS))}


def _event_tables(folder: Path) -> dict[str, tuple[Path, dict[str, str]]]:
    """Tables with rows of patients: those that must be there, and those of the others that are."""
    tables = {
        "vitals": (find_table(folder, "icu/chartevents"), EVENT),
        "labs": (find_table(folder, "hosp/labevents"), EVENT),
    }
    optional = {
        "notes": ("note/radiology", {"charttime": "date", "text": "text"}),
        "cxr": (
            "cxr/mimic-cxr-2.0.0-metadata",
            {"dicom_id": "text", "subject_id": "text", "study_id": "text", "ViewPosition": "text",
             "StudyDate": "number", "StudyTime": "number"},
        ),
        "ecg": ("ecg/record_list", {"ecg_time": "date", "path": "text"}),
    }  # fmt: skip
    for name, (place, columns) in optional.items():
        file = maybe_table(folder, place)
        if file is not None:
            tables[name] = (file, columns)
    return tables


def _wanted_rows(table: pa.Table, items: list[int] | None, subjects: pa.Array) -> pa.Table:
    """Rows of known patients and, of events, of items that are used and have a number."""
    wanted = pc.is_in(table["subject_id"], value_set=subjects)
    if items is not None:
        wanted = pc.and_(wanted, pc.is_in(table["itemid"], value_set=pa.array(items, pa.float64())))
        wanted = pc.and_(wanted, table["valuenum"].is_valid())
    return table.filter(wanted)


def _of_record(table: pa.Table, record: int) -> pa.Table:
    """A patient's rows; the table is ordered by patient."""
    column = table["record"].to_numpy()
    start, stop = np.searchsorted(column, [record, record + 1])
    return table.slice(int(start), int(stop - start))


def _between(table: pa.Table | None, column: str, start: np.datetime64, until: np.datetime64) -> pa.Table | None:
    """Rows with a time in [start, until]; None if there are none."""
    if table is None or not len(table):
        return None
    when = table[column].to_numpy()
    inside = (when >= start) & (when <= until)  # an empty time compares as False
    return table.filter(pa.array(inside)) if inside.any() else None


def _series(
    rows: pa.Table,
    name: str,
    variables: dict[str, tuple[tuple[int, ...], float, float]],
    start: np.datetime64,
    notes: Counter[str],
) -> Series | None:
    channels = item_channels(variables)
    item_O = rows["itemid"].to_numpy().astype(np.int64)
    channel_O = np.array([channels[item] for item in item_O.tolist()])
    value_O = celsius(item_O, rows["valuenum"].to_numpy())
    fine = plausible(variables, channel_O, value_O)
    notes[f"implausible_{name}"] += int((~fine).sum())
    notes["observations"] += int(fine.sum())
    if not fine.any():
        return None
    hours_O = (rows["charttime"].to_numpy()[fine] - start) / HOUR
    return Series(hours_O.astype(np.float32), channel_O[fine].astype(np.int16), value_O[fine].astype(np.float32))
