"""Tables of MIMIC-IV: where they are, which of their columns are read, and which of their rows are of use.

Ids are text. A column of whole numbers that had gaps and went through pandas (10000032.0) means 10000032.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from data_shards.sources.mimic4.items import LABS, VITALS, item_channels

IDS = ("subject_id", "hadm_id", "stay_id", "study_id")
ITEMS = {"vitals": sorted(item_channels(VITALS)), "labs": sorted(item_channels(LABS))}
TIMES = {"vitals": "charttime", "labs": "charttime", "notes": "charttime", "ecg": "ecg_time"}
_EVENT = {"charttime": "date", "itemid": "number", "valuenum": "number"}
_PLACES: dict[str, tuple[str, dict[str, str]]] = {
    "vitals": ("icu/chartevents", _EVENT),
    "labs": ("hosp/labevents", _EVENT),
    "notes": ("note/radiology", {"charttime": "date", "text": "text"}),
    "cxr": (
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
    "ecg": ("ecg/record_list", {"ecg_time": "date", "path": "text"}),
}
# What is read only to be counted, where the file has it
_MAYBE = {"vitals": {"stay_id": "text", "valueuom": "text"}, "labs": {"valueuom": "text"}}
DIAGNOSES = ("hosp/diagnoses_icd", {"hadm_id": "text", "icd_code": "text", "icd_version": "text"})
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


def event_tables(folder: Path) -> dict[str, Table]:
    """Tables with rows of patients, by modality: those that must be there, and those of the others that are."""
    tables: dict[str, Table] = {}
    for name, (place, columns) in _PLACES.items():
        file = find_table(folder, place) if name in ITEMS else maybe_table(folder, place)
        if file is not None:
            there = _header(file) if name in _MAYBE else []
            more = {column: kind for column, kind in _MAYBE.get(name, {}).items() if column in there}
            tables[name] = (file, {**columns, **more})
    return tables


def _header(file: Path) -> list[str]:
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
        name: of the modality. subjects: patients with a stay. counts: what was left out, by reason.
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
        if self.name in TIMES:
            table = self._keep(table, table[TIMES[self.name]].is_valid(), "without_time")
        return table

    def _keep(self, table: pa.Table, wanted: pa.ChunkedArray, reason: str) -> pa.Table:
        kept = table.filter(wanted)
        self.counts[f"{self.name}_{reason}"] += len(table) - len(kept)
        return kept


def unbalanced(name: str, notes: Mapping[str, int]) -> int:
    """Rows of a table of events that were neither used nor counted as left out; 0, or the counts are wrong."""
    left = ("of_other_patients", "of_other_items", "without_number", "without_time", "outside")
    known = sum(notes.get(f"{name}_{reason}", 0) for reason in left) + notes.get(f"implausible_{name}", 0)
    used = notes.get(f"{name}_observations", 0) - notes.get(f"{name}_in_two_stays", 0)
    return notes.get(f"{name}_rows", 0) - known - used
