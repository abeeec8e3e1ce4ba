"""Codes of a stay: drugs and procedures at their times, diagnoses and procedures of earlier admissions.

What a code says and when it is known:

- ``drugs``: ``emar=Heparin`` (given, by the record of administrations), ``input=221906 Norepinephrine`` (an infusion or
  a dose, at its start), ``order=Heparin`` (prescribed, from its start).
- ``procedures``: ``procedure=225792 Invasive Ventilation``, at its start.
- ``history``: ``dx9=5723``, ``dx10=I2101``, ``pr9=...``, ``pr10=...`` of admissions that had ended when the stay began.
  Those of the stay's own admission are written down after its end, for the bill, and are never an input.

Amounts are left out: what is written of an infusion is its whole amount, which is known when it ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_shards.records.record import Codes
from data_shards.sources.mimic4.cohort import HOUR, Stay
from data_shards.sources.mimic4.diagnoses import plain_code, plain_version
from data_shards.sources.mimic4.events import PatientRows
from data_shards.sources.mimic4.tables import EVENTS, maybe_table
from data_shards.sources.part_lists import plain_id
from data_shards.sources.readers.table_files import read_small

# Choice of option drugs -> tables
DRUG_TABLES: dict[str, tuple[str, ...]] = {
    "all": ("emar", "inputevents", "prescriptions"),
    "given": ("emar", "inputevents"),
    "ordered": ("prescriptions",),
    "none": (),
}
TIMED_CODES = {"drugs": DRUG_TABLES["all"], "procedures": ("procedureevents",)}
HISTORY = ("diagnoses_icd", "procedures_icd")
# Beginnings of emar's event_txt that say that somebody got it; others: Not Given, Hold Dose, Stopped, Removed, ...
GIVEN = (
    "^(Administered|Applied|Confirmed|Delayed (Administered|Applied|Started)|Partial Administered|Restarted|Started)"
)
_NAMED = {"emar": ("emar", "medication"), "prescriptions": ("order", "drug")}
_ITEMS = {"inputevents": "input", "procedureevents": "procedure"}
_ICD = {"diagnoses_icd": "dx", "procedures_icd": "pr"}
CODE_TABLES = (*_NAMED, *_ITEMS, *_ICD)
Labels = Mapping[str, str]


def item_labels(folder: Path) -> dict[str, str]:
    """Number of an item -> its name, of icu/d_items; empty if that table is not there."""
    file = maybe_table(folder, "icu/d_items")
    if file is None:
        return {}
    table = read_small(file, {"itemid": "text", "label": "text"})
    pairs = zip(table["itemid"], table["label"], strict=True)
    return {plain_id(item): label.strip() for item, label in pairs if item is not None and label is not None}


def with_codes(name: str, table: pa.Table, notes: Counter[str]) -> pa.Table:
    """Rows that name a code and, of emar, say that it was given; the others are counted."""
    column = _column(name)
    there = pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(pc.fill_null(table[column], ""))), 0)
    if name in _ICD:
        there = pc.and_(there, table["icd_version"].is_valid())
    coded = table.filter(there)
    notes[f"{name}_without_code"] += len(table) - len(coded)
    if name != "emar":
        return coded
    given = coded.filter(pc.match_substring_regex(pc.fill_null(coded["event_txt"], ""), GIVEN))
    notes["emar_not_given"] += len(coded) - len(given)
    return given


def timed_codes(
    rows: Mapping[str, PatientRows], names: tuple[str, ...], stay: Stay, until: np.datetime64, labels: Labels,
    notes: Counter[str],
) -> Codes | None:  # fmt: skip
    """Codes of these tables in the stay's window, in hours since its start; None if there are none."""
    codes, hours = list[str](), list[np.ndarray]()
    for name in names:
        own = rows[name].take(stay.start, until) if name in rows else None
        if own is not None:
            codes += _names(name, own, labels)
            hours.append((own[EVENTS[name].time].to_numpy() - stay.start) / HOUR)
            notes[f"{name}_codes"] += len(own)
    return Codes(codes, np.concatenate(hours).astype(np.float32)) if codes else None


def history(rows: Mapping[str, PatientRows], stay: Stay, notes: Counter[str]) -> Codes | None:
    """Each code once, sorted, of the admissions before the stay; None if there are none."""
    codes = set[str]()
    for name in HISTORY:
        own = rows[name].take_of("hadm_id", stay.earlier) if name in rows else None
        if own is not None:
            codes.update(_names(name, own, {}))
            notes[f"{name}_codes"] += len(own)
    return Codes(sorted(codes)) if codes else None


def _column(name: str) -> str:
    return _NAMED[name][1] if name in _NAMED else "itemid" if name in _ITEMS else "icd_code"


def _names(name: str, rows: pa.Table, labels: Labels) -> list[str]:
    cells = [str(cell).strip() for cell in rows[_column(name)].to_pylist()]
    if name in _NAMED:
        return [f"{_NAMED[name][0]}={cell}" for cell in cells]
    if name in _ITEMS:
        return [f"{_ITEMS[name]}={f'{item} {labels.get(item, str())}'.strip()}" for item in map(plain_id, cells)]
    versions = rows["icd_version"].to_pylist()
    return [f"{_ICD[name]}{plain_version(v)}={plain_code(cell)}" for cell, v in zip(cells, versions, strict=True)]
