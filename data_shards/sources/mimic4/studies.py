"""Reports, X-rays and ECGs of one stay: all reports as one text, the last frontal X-ray, the last ECG of the window."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_shards.sources.mimic4.events import PatientRows
from data_shards.sources.mimic4.items import study_time
from data_shards.sources.mimic4.recordings import read_ecg
from data_shards.sources.mimic4.tables import TIMES

FRONTAL = ("AP", "PA")
MOST_TEXT = 32_768  # bytes


def patient_rows(name: str, table: pa.Table, notes: Counter[str]) -> PatientRows:
    """Rows of a patient that have what it takes, with their times; the others are counted."""
    if name == "notes":
        table = _keep(
            table, pc.greater(pc.utf8_length(pc.fill_null(table["text"], "")), 0), "notes_without_text", notes
        )
    if name == "ecg":
        table = _keep(table, table["path"].is_valid(), "ecg_without_path", notes)
    if name != "cxr":
        return PatientRows(name, table, table[TIMES[name]].to_numpy())
    table = _keep(table, pc.is_in(table["ViewPosition"], value_set=pa.array(FRONTAL)), "cxr_not_frontal", notes)
    time_N = study_time(table["StudyDate"].to_numpy(), table["StudyTime"].to_numpy())
    known = ~np.isnat(time_N)
    return PatientRows(name, _keep(table, pa.array(known), "cxr_without_time", notes), time_N[known])


def _keep(table: pa.Table, wanted: pa.Array, reason: str, notes: Counter[str]) -> pa.Table:
    kept = table.filter(wanted)
    notes[reason] += len(table) - len(kept)
    return kept


def joined_reports(rows: pa.Table, notes: Counter[str]) -> str:
    """Reports in order of time, joined by line ends; cut at MOST_TEXT bytes."""
    joined = "\n".join(rows.sort_by("charttime")["text"].to_pylist()).encode()
    notes["notes_reports"] += len(rows)
    notes["notes_cut"] += len(joined) > MOST_TEXT
    return joined[:MOST_TEXT].decode(errors="ignore")


def last_picture(rows: pa.Table, folder: Path, notes: Counter[str]) -> Path:
    """The file of the last X-ray."""
    time_N = study_time(rows["StudyDate"].to_numpy(), rows["StudyTime"].to_numpy())
    row = rows.slice(int(np.argmax(time_N)), 1).to_pylist()[0]
    notes["cxr_not_last"] += len(rows) - 1
    subject = row["subject_id"]
    return folder / f"cxr/files/p{subject[:2]}/p{subject}/s{row['study_id']}/{row['dicom_id']}.jpg"


def last_ecg(
    rows: pa.Table, folder: Path, step: int, resample: bool, drop: bool, notes: Counter[str]
) -> np.ndarray | None:
    """float32 [L, 12] of the last ECG, see ``read_ecg``; None if it cannot be used and ``drop`` says to go on."""
    path = rows.sort_by("ecg_time")["path"].to_pylist()[-1]
    notes["ecg_not_last"] += len(rows) - 1
    try:
        ecg = read_ecg(folder / "ecg" / path, step, resample)
    except ValueError:
        if not drop:
            raise
        notes["ecg_unusable"] += 1
        return None
    notes["ecg_gaps"] += ecg.gaps
    notes.update(ecg.counts)
    return ecg.values_LC
