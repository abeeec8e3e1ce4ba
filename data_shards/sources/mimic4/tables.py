"""Tables of MIMIC-IV: where they are, which of their columns are read, and which of their rows are of use.

Ids are text. A column of whole numbers that had gaps and went through pandas (10000032.0) means 10000032.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from data_shards.sources.mimic4.items import LABS, VITALS, item_channels

IDS = ("subject_id", "hadm_id", "stay_id", "study_id")
ITEMS = {"vitals": sorted(item_channels(VITALS)), "labs": sorted(item_channels(LABS))}
_EVENT = {"charttime": "date", "itemid": "number", "valuenum": "number"}
_ICD = {"hadm_id": "text", "icd_code": "text", "icd_version": "text"}


@dataclass(frozen=True)
class EventTable:
    """A table with rows of patients.

    Attributes:
        place: below the folder. columns: that are read, and their types. time: column that says when; empty: none does,
            or the rows say it in another way. maybe: columns that are read where the file has them.
    """

    place: str
    columns: dict[str, str]
    time: str = ""
    maybe: dict[str, str] = field(default_factory=dict)


# Table -> what is read of it; those of series and objects are called as their modality
EVENTS = {
    "vitals": EventTable("icu/chartevents", _EVENT, "charttime", {"stay_id": "text", "valueuom": "text"}),
    "labs": EventTable("hosp/labevents", _EVENT, "charttime", {"valueuom": "text", "storetime": "date"}),
    "notes": EventTable(
        "note/radiology", {"charttime": "date", "text": "text"}, "charttime", {"storetime": "date"}
    ),
    "cxr": EventTable(
        "cxr/mimic-cxr-2.0.0-metadata",
        {
            "dicom_id": "text",
            "subject_id": "text",
            "study_id": "text",
            "ViewPosition": "text",
            "StudyDate": "number",
            "StudyTime": "number",
        },
    ),
    "ecg": EventTable("ecg/record_list", {"ecg_time": "date", "path": "text"}, "ecg_time"),
    "emar": EventTable("hosp/emar", {"charttime": "date", "medication": "text", "event_txt": "text"}, "charttime"),
    "inputevents": EventTable("icu/inputevents", {"starttime": "date", "itemid": "text"}, "starttime"),
    "prescriptions": EventTable("hosp/prescriptions", {"starttime": "date", "drug": "text"}, "starttime"),
    "procedureevents": EventTable("icu/procedureevents", {"starttime": "date", "itemid": "text"}, "starttime"),
    "diagnoses_icd": EventTable("hosp/diagnoses_icd", _ICD),
    "procedures_icd": EventTable("hosp/procedures_icd", _ICD),
}  # fmt: skip
DIAGNOSES = ("hosp/diagnoses_icd", _ICD)
Table = tuple[Path, dict[str, str]]


def maybe_table(folder: Path, name: str) -> Path | None:
    """The .csv.gz or else the .csv of that name below the folder, if there is one."""
    found = (folder / f"{name}{suffix}" for suffix in (".csv.gz", ".csv"))
    return next((path for path in found if path.is_file()), None)


def find_table(folder: Path, name: str) -> Path:
    """The same; ValueError if there is none."""
    path = maybe_table(folder, name)
    if path is None:
        raise ValueError(f"{folder / name}.csv (or .csv.gz) does not exist; is {folder} the folder of hosp/ and icu/?")
    return path


def event_tables(folder: Path, names: Iterable[str]) -> dict[str, Table]:
    """Tables with rows of patients, by name: those of series, which must be there, and those of the others that are."""
    tables: dict[str, Table] = {}
    for name in names:
        table = EVENTS[name]
        file = find_table(folder, table.place) if name in ITEMS else maybe_table(folder, table.place)
        if file is not None:
            there = header(file) if table.maybe else []
            more = {column: kind for column, kind in table.maybe.items() if column in there}
            tables[name] = (file, {**table.columns, **more})
    return tables


def header(file: Path) -> list[str]:
    """Names of the columns; none if the file is damaged, which whoever reads it will say."""
    try:
        with pa.input_stream(str(file)) as stream:
            first = io.TextIOWrapper(stream, encoding="utf-8-sig").readline()
    except (OSError, UnicodeDecodeError):
        return []
    return next(csv.reader([first]), [])


def plain_ids(table: pa.Table) -> pa.Table:
    """The table with its ids as they are meant."""
    for name in set(IDS) & set(table.column_names):
        column = pc.replace_substring_regex(pc.utf8_trim_whitespace(table[name]), r"^(\d+)\.0+$", r"\1")
        table = table.set_column(table.column_names.index(name), name, column)
    return table


@dataclass
class RowFilter:
    """Takes the rows that can be of use out of a table, piece by piece, and counts the others.

    Attributes:
        name: of the table. subjects: patients with a stay. counts: what was left out, by reason.
    """

    name: str
    subjects: pa.Array
    counts: Counter[str] = field(default_factory=Counter)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows of known patients and, of events, of items that are used, with a number and a time."""
        table = plain_ids(table)
        self.counts[f"{self.name}_rows"] += len(table)
        table = self._keep(table, pc.is_in(table["subject_id"], value_set=self.subjects), "of_other_patients")
        if self.name in ITEMS:
            items = pa.array(ITEMS[self.name], pa.float64())
            table = self._keep(table, pc.is_in(table["itemid"], value_set=items), "of_other_items")
            table = self._keep(table, table["valuenum"].is_valid(), "without_number")
        time = EVENTS[self.name].time if self.name in EVENTS else ""
        if time:
            table = self._keep(table, table[time].is_valid(), "without_time")
        return table

    def _keep(self, table: pa.Table, wanted: pa.ChunkedArray, reason: str) -> pa.Table:
        kept = table.filter(wanted)
        self.counts[f"{self.name}_{reason}"] += len(table) - len(kept)
        return kept


def unbalanced(name: str, notes: Mapping[str, int]) -> int:
    """Rows of a table with times that were neither used nor counted as left out; 0, or the counts are wrong."""
    left = ("of_other_patients", "of_other_items", "without_number", "without_time", "outside", "without_text",
            "without_path", "not_frontal", "without_code", "not_given", "unusable")  # fmt: skip
    known = sum(notes.get(f"{name}_{reason}", 0) for reason in left) + notes.get(f"implausible_{name}", 0)
    used = sum(notes.get(f"{name}_{what}", 0) for what in ("observations", "objects", "codes"))
    used -= notes.get(f"{name}_in_two_stays", 0)
    return notes.get(f"{name}_rows", 0) - known - used
