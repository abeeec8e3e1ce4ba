"""PTB-XL: 21,799 clinical ECGs of twelve leads and ten seconds, with what cardiologists said of them.

Wagner et al. (Scientific Data 2020), PhysioNet, CC BY 4.0. Expects the official layout: ``ptbxl_database.csv``, the
WFDB records (format 16) below ``records100`` or ``records500``, and, for the superclasses, ``scp_statements.csv``.

Tasks: ``superclass``, which of NORM, MI, STTC, CD and HYP any statement belongs to (as the authors aggregate them:
diagnostic statements of any likelihood; an ECG with none has no label), where ``scp_statements.csv`` is there; and
``normal``, whether NORM is stated. The split ``default`` is the authors': folds 1 to 8 train, 9 val, 10 test, and
patients are never in two of them. The report is never an input: it is where the labels come from.

``static`` is age, sex (0 male, 1 female), height and weight, and which of them are known. Above 89 the file gives the
age 300; such ages become 90 and are counted. Leads are found by name, values are in mV.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from data_shards.paths import absolute_path
from data_shards.records.record import Record, Value
from data_shards.records.schema import DatasetSchema, ModalitySpec, TaskSpec
from data_shards.sources.base import Source, SourceOptions
from data_shards.sources.part_lists import plain_id
from data_shards.sources.readers.recordings.read import Part, read_signal
from data_shards.sources.readers.signals import fit_signal
from data_shards.sources.readers.table_files import read_small

SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
LEADS = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
NUMBERS = ("age", "sex", "height", "weight")
AGE_ABOVE_89, OLDEST = 300, 90.0
FOLDS = {**dict.fromkeys(range(1, 9), "train"), 9: "val", 10: "test"}
SECONDS = 10
_UNIT = 500
_FILES = {"100": "filename_lr", "500": "filename_hr"}


class PtbXlOptions(SourceOptions):
    """Options of this source."""

    path: str = Field(description="folder with ptbxl_database.csv and records100/ or records500/")
    rate: Literal["100", "500"] = Field("100", description="samples per second: the records of that folder are read")
    missing: Literal["refuse", "drop"] = Field(
        "refuse", description="ECGs whose files are not there or cannot be read: an error, or left out (counted)"
    )


class PtbXl(Source):
    """ECGs as records; see the module's text."""

    Options: ClassVar[type[SourceOptions]] = PtbXlOptions

    def __init__(self, options: PtbXlOptions) -> None:
        super().__init__(options)
        self.options: PtbXlOptions = options
        self.folder, self.rate = absolute_path(options.path), float(options.rate)
        self.file = self.folder / "ptbxl_database.csv"
        if not self.file.is_file():
            raise ValueError(
                f"{self.file} does not exist; give the folder that holds it and records100/ or records500/"
            )
        self.superclass = _superclasses(self.folder / "scp_statements.csv")
        self.schema = self._schema()

    def units(self) -> list[list[dict[str, Any]]]:
        """Pieces of the rows of the table."""
        texts = ("ecg_id", "patient_id", "scp_codes", _FILES[self.options.rate])
        columns = {**dict.fromkeys(texts, "text"), **dict.fromkeys((*NUMBERS, "strat_fold"), "number")}
        table = read_small(self.file, columns)
        rows = [dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)]
        return [rows[a : a + _UNIT] for a in range(0, len(rows), _UNIT)]

    def read(self, unit: list[dict[str, Any]], notes: Counter[str]) -> Iterator[Record]:
        """ECGs of one piece."""
        for row in unit:
            where = f"{self.file}, ecg_id {row['ecg_id']}"
            ecg = self._ecg(str(row[_FILES[self.options.rate]]), notes)
            if ecg is None:
                continue
            values: dict[str, Value] = {"ecg": ecg, "static": _static(row, notes)}
            fold = row["strat_fold"]
            if fold not in FOLDS:
                raise ValueError(f"{where}: strat_fold is {fold}, and folds are 1 to 10")
            patient = None if row["patient_id"] is None else f"patient-{plain_id(row['patient_id'])}"
            targets = self._targets(_statements(row["scp_codes"], where), notes)
            yield Record(f"ecg-{plain_id(row['ecg_id'])}", values, targets, {"default": FOLDS[fold]}, group=patient)

    def _ecg(self, name: str, notes: Counter[str]) -> np.ndarray | None:
        """float32 [L, 12] in mV; None if it cannot be used and is to be left out."""
        path = self.folder / name
        try:
            signal = read_signal(path, f"ECG {path}", Part(LEADS))
            return fit_signal(signal, f"ECG {path}", LEADS, self.rate, "mV", notes)
        except ValueError as error:
            if self.options.missing == "refuse":
                raise ValueError(f"{error}; leave such ECGs out with -o missing=drop") from error
            notes["ecgs_left_out"] += 1
            return None

    def _targets(self, statements: dict[str, float], notes: Counter[str]) -> dict[str, np.ndarray | float | None]:
        targets: dict[str, np.ndarray | float | None] = {"normal": float("NORM" in statements)}
        if self.superclass is not None:
            own = {self.superclass[code] for code in statements if code in self.superclass}
            notes["ecgs_without_superclass"] += not own
            targets["superclass"] = np.array([name in own for name in SUPERCLASSES], np.float32) if own else None
        return targets

    def _schema(self) -> DatasetSchema:
        about = "0 where unknown; *_known says which; sex 1 is female"
        names = (*NUMBERS, *(f"{name}_known" for name in NUMBERS))
        modalities = (
            ModalitySpec(
                "ecg", "waveform", channels=LEADS, rate=self.rate, max_length=round(SECONDS * self.rate), unit="mV"
            ),
            ModalitySpec("static", "vector", channels=names, description=about),
        )
        tasks = [TaskSpec("normal", "binary", classes=("other", "normal"), description="NORM is stated")]
        if self.superclass is not None:
            tasks.insert(0, TaskSpec("superclass", "multilabel", classes=SUPERCLASSES))
        return DatasetSchema("ptbxl", modalities, tuple(tasks))


def _superclasses(file: Path) -> dict[str, str] | None:
    """Diagnostic statement -> its superclass; None if there is no table of statements."""
    if not file.is_file():
        return None
    # The column of codes has no name in the official file
    with file.open(encoding="utf-8-sig") as stream:
        first = stream.readline().split(",")[0].strip()
    table = read_small(file, {first: "text", "diagnostic": "number", "diagnostic_class": "text"})
    found = {}
    for code, diagnostic, name in zip(*table.values(), strict=True):
        if diagnostic == 1 and code is not None:
            if name not in SUPERCLASSES:
                raise ValueError(
                    f"{file}: the diagnostic_class of {code} is {name!r}, none of {', '.join(SUPERCLASSES)}"
                )
            found[code] = name
    if not found:
        raise ValueError(f"{file} names no diagnostic statement; is it the table of PTB-XL?")
    return found


def _statements(cell: str | None, where: str) -> dict[str, float]:
    """Statement -> likelihood, of a cell such as {'NORM': 100.0, 'SR': 0.0}."""
    try:
        found = ast.literal_eval(cell or "")
    except (ValueError, SyntaxError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(code, str) for code in found):
        raise ValueError(f"{where}: scp_codes is {cell!r}, not statements with their likelihoods in braces")
    return found


def _static(row: dict[str, Any], notes: Counter[str]) -> np.ndarray:
    """float32 [8]: the numbers, 0 where unknown, and which are known."""
    own = {name: row[name] for name in NUMBERS}
    if own["age"] == AGE_ABOVE_89:
        notes["ages_above_89"] += 1
        own["age"] = OLDEST
    known = [own[name] is not None for name in NUMBERS]
    return np.array([*(own[name] or 0.0 for name in NUMBERS), *known], np.float32)
