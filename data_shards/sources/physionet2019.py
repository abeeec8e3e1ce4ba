"""PhysioNet / Computing in Cardiology Challenge 2019: sepsis, predicted hour by hour in intensive care.

Reyna et al. (Critical Care Medicine 2020), PhysioNet. Expects the official training sets: files ``p000001.psv`` (set A,
hospital system A, 20,336 stays) and ``p100001.psv`` (set B, 20,000 stays) anywhere below the folder, with a row an
hour, columns separated by ``|``, NaN where nothing was measured, units as the challenge states them.

``labels=hourly`` is the challenge's task: ``sepsis`` is ``SepsisLabel`` of each hour (``ICULOS``, hours in intensive
care), which is 1 from six hours before sepsis sets in; a sample sees the rows up to its hour. ``labels=stay`` has one
label a stay: from the first ``window_h`` hours, whether the label is ever 1 later. Stays that are shorter, or labelled
within the window, are then left out and counted.

Splits: ``default`` 80/10/10 by hash of the stay (or those of a list); where both sets are there, ``a_to_b`` trains on
set A and tests on set B. ``static`` is age, gender (1 male), kind of unit and hours from admission to intensive care,
and which are known. Trap: FiO2 is said to be in percent and mostly is a fraction; it is taken as it stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from data_shards.paths import absolute_path
from data_shards.records.record import Record, Series, Value
from data_shards.records.schema import DatasetSchema, ModalitySpec, TaskSpec
from data_shards.sources.base import Source, SourceOptions, hashed_part
from data_shards.sources.part_lists import read_part_list

# Group -> variable -> unit, in the order of the files
GROUPS: dict[str, dict[str, str]] = {
    "vitals": {
        "HR": "beats/min", "O2Sat": "%", "Temp": "deg C", "SBP": "mmHg", "MAP": "mmHg", "DBP": "mmHg",
        "Resp": "breaths/min", "EtCO2": "mmHg",
    },
    "blood_gas": {
        "BaseExcess": "mmol/L", "HCO3": "mmol/L", "FiO2": "%", "pH": "", "PaCO2": "mmHg", "SaO2": "%",
        "Lactate": "mg/dL",
    },
    "chemistry": {
        "BUN": "mg/dL", "Calcium": "mg/dL", "Chloride": "mmol/L", "Creatinine": "mg/dL", "Glucose": "mg/dL",
        "Magnesium": "mmol/dL", "Phosphate": "mg/dL", "Potassium": "mmol/L",
    },
    "liver_cardiac": {
        "AST": "IU/L", "Alkalinephos": "IU/L", "Bilirubin_direct": "mg/dL", "Bilirubin_total": "mg/dL",
        "TroponinI": "ng/mL",
    },
    "hematology": {
        "Hct": "%", "Hgb": "g/dL", "PTT": "seconds", "WBC": "10^3/uL", "Fibrinogen": "mg/dL", "Platelets": "10^3/uL",
    },
}  # fmt: skip
HEADER = (
    "HR|O2Sat|Temp|SBP|MAP|DBP|Resp|EtCO2|BaseExcess|HCO3|FiO2|pH|PaCO2|SaO2|AST|BUN|Alkalinephos|Calcium|Chloride|"
    "Creatinine|Bilirubin_direct|Glucose|Lactate|Magnesium|Phosphate|Potassium|Bilirubin_total|TroponinI|Hct|Hgb|PTT|"
    "WBC|Fibrinogen|Platelets|Age|Gender|Unit1|Unit2|HospAdmTime|ICULOS|SepsisLabel"
)
COLUMNS = {name: place for place, name in enumerate(HEADER.split("|"))}
STATIC = ("Age", "Gender", "Unit1", "Unit2", "HospAdmTime")
SHARES = (("train", 0.8), ("val", 0.1), ("test", 0.1))
SHARES_BUT_TEST = (("train", 8 / 9), ("val", 1 / 9))
WINDOW_H = {"hourly": 72.0, "stay": 12.0}
_UNIT_FILES = 500


class PhysioNet2019Options(SourceOptions):
    """Options of this source."""

    path: str = Field(description="folder with p000001.psv and so on (set A) or p100001.psv (set B), at any depth")
    labels: Literal["hourly", "stay"] = Field("hourly", description="a label at each hour, or one for each stay")
    window_h: float | None = Field(
        None,
        gt=0,
        description="hours that are seen: before each hour (hourly; default 72), or from the first on (stay; 12)",
    )
    splits: str | None = Field(
        None,
        description="CSV with a column patient (p000001) and one column per split (train, val, test, or empty); with "
        "that column alone it lists the test part, and the others are hashed; default: all by hash",
    )


class PhysioNet2019(Source):
    """Stays as records; see the module's text."""

    Options: ClassVar[type[SourceOptions]] = PhysioNet2019Options

    def __init__(self, options: PhysioNet2019Options) -> None:
        super().__init__(options)
        self.folder, self.hourly = absolute_path(options.path), options.labels == "hourly"
        self.window = options.window_h or WINDOW_H[options.labels]
        self.files = sorted(self.folder.rglob("p[01][0-9][0-9][0-9][0-9][0-9].psv"), key=lambda file: file.stem)
        if not self.files:
            raise ValueError(f"{self.folder} holds no file such as p000001.psv; is it the challenge's training data?")
        twice = [file for file, after in zip(self.files, self.files[1:], strict=False) if file.stem == after.stem]
        if twice:
            raise ValueError(f"{self.folder} holds {twice[0].name} twice; which one is the right one?")
        self.both = {file.stem[1] for file in self.files} == {"0", "1"}
        self.part_list = read_part_list(absolute_path(options.splits), ["patient"]) if options.splits else None
        self.schema = self._schema()

    def units(self) -> list[tuple[int, int]]:
        """(first file, end) pieces."""
        count = len(self.files)
        return [(a, min(a + _UNIT_FILES, count)) for a in range(0, count, _UNIT_FILES)]

    def read(self, unit: tuple[int, int], notes: Counter[str]) -> Iterator[Record]:
        """Stays of one piece; those that are left out are counted."""
        for file in self.files[unit[0] : unit[1]]:
            notes["stays"] += 1
            record = self._record(file, read_stay(file), notes)
            if record is not None:
                notes["stays_packed"] += 1
                yield record

    def report(self, notes: Counter[str]) -> dict[str, Any]:
        """What was read and left out, and which ids of a list were not found."""
        if self.part_list is not None:
            unknown = self.part_list.parts.keys() - {file.stem for file in self.files}
            notes = notes + Counter({"split_ids_unknown": len(unknown), "split_ids_twice": self.part_list.twice})
        return super().report(notes) | {"window_hours": self.window}

    def _record(self, file: Path, rows_LC: np.ndarray, notes: Counter[str]) -> Record | None:
        hour_L, label_L = rows_LC[:, COLUMNS["ICULOS"]], rows_LC[:, COLUMNS["SepsisLabel"]]
        late = float(label_L.max())
        if not self.hourly:
            inside_L = hour_L <= self.window
            if inside_L.all():
                notes["stays_too_short"] += 1
                return None
            if label_L[inside_L].any():
                notes["stays_septic_in_window"] += 1
                return None
            rows_LC = rows_LC[inside_L]
        values = _series(rows_LC, notes)
        if not values:
            notes["stays_without_observation"] += 1
            return None
        values["static"] = _static(rows_LC, notes)
        parts = self._parts(file.stem, notes)
        if not self.hourly:
            return Record(file.stem, values, {"sepsis": late}, parts, group=file.stem)
        notes["moments"] += len(hour_L)
        targets: dict[str, np.ndarray | float | None] = {"sepsis": label_L.astype(np.float32)}
        return Record(file.stem, values, targets, parts, group=file.stem, moments=hour_L.astype(np.float32))

    def _parts(self, stay: str, notes: Counter[str]) -> dict[str, str]:
        parts = {"default": hashed_part(stay, SHARES)}
        if self.part_list is not None:
            parts = dict(self.part_list.parts.get(stay, {}))
            if not parts and self.part_list.tests_only:
                parts = {"default": hashed_part(stay, SHARES_BUT_TEST)}
            for split in self.part_list.splits:
                notes[f"stays_without_part.{split}"] += split not in parts
        if self.both:
            parts["a_to_b"] = "test" if stay[1] == "1" else hashed_part(stay, SHARES_BUT_TEST)
        return parts

    def _schema(self) -> DatasetSchema:
        series = [
            ModalitySpec(
                name, "series", channels=tuple(own), units=tuple(own.values()), time_unit="hours", horizon=self.window
            )
            for name, own in GROUPS.items()
        ]
        names = (*STATIC, *(f"{name}_known" for name in STATIC))
        static = ModalitySpec("static", "vector", channels=names, description="0 where unknown; Gender 1 is male")
        classes = ("no sepsis", "sepsis")
        if self.hourly:
            about = "SepsisLabel of the hour: 1 from six hours before sepsis sets in"
            task = TaskSpec("sepsis", "binary", classes=classes, description=about, timed=True, time_unit="hours")
        else:
            about = f"SepsisLabel is 1 at any hour after {self.window:g}"
            task = TaskSpec("sepsis", "binary", classes=classes, description=about)
        return DatasetSchema("physionet2019", (*series, static), (task,))


def read_stay(file: Path) -> np.ndarray:
    """float64 [L, 41], rows by hour, NaN where nothing was measured.

    Raises:
        ValueError: another header, a cell that is no number, or hours or labels that cannot be.
    """
    try:
        lines = file.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not lines or lines[0].strip() != HEADER:
        found = lines[0][:60] if lines else ""
        raise ValueError(f"{file}: the first line is {found!r}..., not the challenge's header {HEADER[:20]}...")
    rows = []
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("|")
        try:
            rows.append([float(cell) for cell in cells])
        except ValueError:
            raise ValueError(f"{file}, line {number} holds a cell that is no number: {line[:80]!r}") from None
        if len(cells) != len(COLUMNS) or np.isinf(rows[-1]).any():
            raise ValueError(f"{file}, line {number} has {len(cells)} cells or an infinite one; {len(COLUMNS)} are due")
    table_LC = np.array(rows, np.float64).reshape(-1, len(COLUMNS))
    hour_L, label_L = table_LC[:, COLUMNS["ICULOS"]], table_LC[:, COLUMNS["SepsisLabel"]]
    if (
        not len(table_LC)
        or not (np.diff(hour_L) > 0).all()
        or not (hour_L > 0).all()
        or not np.isin(label_L, (0, 1)).all()
    ):
        raise ValueError(
            f"{file}: ICULOS must ascend from above 0 and SepsisLabel be 0 or 1 in every row, of which there is one"
        )
    return table_LC


def _series(rows_LC: np.ndarray, notes: Counter[str]) -> dict[str, Value]:
    """Observations of each group at their hours; groups without any are left out."""
    values: dict[str, Value] = {}
    for name, own in GROUPS.items():
        value_LF = rows_LC[:, [COLUMNS[variable] for variable in own]]
        seen_LF = ~np.isnan(value_LF)
        if seen_LF.any():
            values[name] = Series.from_dense(rows_LC[:, COLUMNS["ICULOS"]], value_LF, seen_LF)
            notes["observations"] += int(seen_LF.sum())
    return values


def _static(rows_LC: np.ndarray, notes: Counter[str]) -> np.ndarray:
    """float32 [10]: descriptors in the first row, 0 where unknown, and which are known."""
    own_LS = rows_LC[:, [COLUMNS[name] for name in STATIC]]
    first_S = own_LS[0]
    notes["descriptors_that_change"] += int(
        ((own_LS != first_S) & ~(np.isnan(own_LS) & np.isnan(first_S))).any(axis=0).sum()
    )
    known_S = ~np.isnan(first_S)
    return np.concatenate([np.where(known_S, first_S, 0.0), known_S]).astype(np.float32)
