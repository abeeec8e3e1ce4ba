"""Reports, X-rays and ECGs of a stay, each with its time in hours since the stay began.

A report is there to be read from its storetime on, usually hours after its charttime, when the picture that it
describes was taken. X-rays and ECGs are there as soon as they are taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_shards.records.record import Objects
from data_shards.sources.mimic4.cohort import HOUR, Stay
from data_shards.sources.mimic4.events import PatientRows
from data_shards.sources.mimic4.items import study_time
from data_shards.sources.mimic4.options import Mimic4Options
from data_shards.sources.mimic4.recordings import read_ecg
from data_shards.sources.readers.pictures import read_picture

FRONTAL = ("AP", "PA")
MOST_TEXT = 32_768  # bytes of one report
_TIME = "study_time"  # column that is made of an X-ray's date and time


def whole_studies(name: str, table: pa.Table, notes: Counter[str]) -> pa.Table:
    """Rows of reports, X-rays or ECGs that have what it takes; the others are counted. X-rays get a time."""
    if name == "notes":
        there = pc.greater(pc.utf8_length(pc.fill_null(table["text"], "")), 0)
        return _keep(table, there, "notes_without_text", notes)
    if name == "ecg":
        return _keep(table, table["path"].is_valid(), "ecg_without_path", notes)
    table = _keep(table, pc.is_in(table["ViewPosition"], value_set=pa.array(FRONTAL)), "cxr_not_frontal", notes)
    time_N = study_time(table["StudyDate"].to_numpy(), table["StudyTime"].to_numpy())
    table = table.append_column(_TIME, pa.array(time_N, pa.timestamp("us")))
    return _keep(table, pa.array(~np.isnat(time_N)), "cxr_without_time", notes)


def study_times(name: str, table: pa.Table) -> np.ndarray:
    """datetime64[us] of each row."""
    column = {"notes": "charttime", "cxr": _TIME, "ecg": "ecg_time"}[name]
    return np.asarray(table[column].to_numpy())


def _keep(table: pa.Table, wanted: pa.Array, reason: str, notes: Counter[str]) -> pa.Table:
    kept = table.filter(wanted)
    notes[reason] += len(table) - len(kept)
    return kept


class Studies:
    """Reads those of one data set.

    Args:
        folder: of note/, cxr/ and ecg/.
    """

    def __init__(self, folder: Path, options: Mimic4Options) -> None:
        self.folder, self.options = folder, options

    def of_stay(
        self, stay: Stay, until: np.datetime64, rows: Mapping[str, PatientRows], notes: Counter[str]
    ) -> dict[str, Objects]:
        """Those in the window, by modality; one without any is left out.

        Raises:
            ValueError: a file that is not there or cannot be used, unless the options say to leave it out.
        """
        found = {}
        read = {"notes": self._report, "cxr": self._picture, "ecg": self._ecg}
        for name, make in read.items():
            own = rows[name].take(stay.start, until) if name in rows else None
            if own is None:
                continue
            made = [make(row, notes) for row in own.to_pylist()]
            there_N = np.array([value is not None for value in made])
            notes[f"{name}_objects"] += int(there_N.sum())
            notes[f"{name}_unusable"] += int((~there_N).sum())
            if there_N.any():
                hours_N = ((study_times(name, own) - stay.start) / HOUR)[there_N].astype(np.float32)
                values = [value for value in made if value is not None]
                found[name] = Objects(hours_N, values)  # type: ignore[arg-type]  # of one type each
        return found

    def _report(self, row: dict[str, Any], notes: Counter[str]) -> str:
        """The text, cut at MOST_TEXT bytes."""
        text = str(row["text"]).encode()
        notes["notes_cut"] += len(text) > MOST_TEXT
        return text[:MOST_TEXT].decode(errors="ignore")

    def _picture(self, row: dict[str, Any], notes: Counter[str]) -> np.ndarray | None:
        """uint8 (1, side, side)."""
        subject, side = row["subject_id"], self.options.image_side
        place = f"cxr/files/p{subject[:2]}/p{subject}/s{row['study_id']}/{row['dicom_id']}.jpg"
        path = self.folder / place
        try:
            return read_picture(path, f"picture {path}", (1, side, side), True, notes)
        except ValueError as error:
            if self.options.cxr_unusable == "refuse":
                raise ValueError(f"{error}; leave such X-rays out with -o cxr_unusable=drop") from error
            return None

    def _ecg(self, row: dict[str, Any], notes: Counter[str]) -> np.ndarray | None:
        """float32 [L, 12], see ``read_ecg``."""
        options = self.options
        try:
            ecg = read_ecg(self.folder / "ecg" / row["path"], options.ecg_step, options.ecg_resample)
        except ValueError:
            if options.ecg_unusable == "refuse":
                raise
            return None
        notes["ecg_gaps"] += ecg.gaps
        notes.update(ecg.counts)
        return ecg.values_LC
