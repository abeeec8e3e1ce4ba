"""PhysioNet / Computing in Cardiology Challenge 2012: the first 48 hours of 12,000 intensive-care stays.

Silva et al., "Predicting In-Hospital Mortality of ICU Patients", CinC 2012; Goldberger et al., PhysioNet, 2000.

Expects the official layout: ``set-a`` (and b, c) as a folder or ``.tar.gz`` of ``<RecordID>.txt`` files with lines
``HH:MM,Parameter,Value``, and ``Outcomes-a.txt``. Time-stamped variables form irregular series in nine clinical groups
(``modalities.json`` in the folder may name others); the descriptors given at 00:00 form the vector ``static``.
"""

from __future__ import annotations

import csv
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from data_shards.paths import absolute_path
from data_shards.records.record import Codes, Record, Series, Value
from data_shards.records.schema import DatasetSchema, ModalitySpec, TaskSpec
from data_shards.records.vocabulary import Vocabulary
from data_shards.sources.base import Source, SourceOptions, hashed_part
from data_shards.sources.part_lists import read_part_list

GROUPS: dict[str, tuple[str, ...]] = {
    "invasive_bp": ("SysABP", "DiasABP", "MAP"),
    "noninvasive_bp": ("NISysABP", "NIDiasABP", "NIMAP"),
    "vitals": ("HR", "RespRate", "Temp", "SaO2"),
    "neuro_vent_output": ("GCS", "MechVent", "FiO2", "Urine", "Weight"),
    "blood_gas": ("pH", "PaCO2", "PaO2", "Lactate"),
    "chemistry": ("BUN", "Creatinine", "Glucose", "HCO3", "K", "Mg", "Na"),
    "hematology": ("HCT", "Platelets", "WBC"),
    "liver": ("ALP", "ALT", "AST", "Albumin", "Bilirubin", "Cholesterol"),
    "cardiac_enzymes": ("TroponinI", "TroponinT"),
}
DESCRIPTORS = ("RecordID", "Age", "Gender", "Height", "ICUType", "Weight")
STATIC = (
    *("age", "gender", "height", "icu_coronary", "icu_cardiac_surgery", "icu_medical", "icu_surgical", "weight"),
    *("age_known", "gender_known", "height_known", "icu_known", "weight_known"),
)
NUMBERS = ("age", "height", "weight", "age_known", "height_known", "weight_known")
CATEGORIES = {
    "Gender": {0: "gender=female", 1: "gender=male"},
    "ICUType": {1: "icu=coronary", 2: "icu=cardiac_surgery", 3: "icu=medical", 4: "icu=surgical"},
}
HORIZON = 48.0
LONG_STAY = 7
MAX_FILE = 1 << 22
SHARES = (("train", 0.8), ("val", 0.1), ("test", 0.1))
SHARES_BUT_TEST = (("train", 8 / 9), ("val", 1 / 9))
_UNIT_STAYS = 500


class PhysioNet2012Options(SourceOptions):
    """Options of this source."""

    path: str = Field(description="folder with set-a (and b, c) as folders or .tar.gz, and Outcomes-a.txt (and b, c)")
    splits: str | None = Field(
        None,
        description="CSV with a RecordID column and one column per split (train, val, test, or empty); with that "
        "column alone it lists the test part, and the others are hashed; without a file all are",
    )
    static: Literal["vector", "codes"] = Field(
        "vector",
        description="descriptors of a stay: one vector of all; or gender and kind of ward as codes (descriptors; an "
        "unknown one is counted) and a vector of age, height and weight (static)",
    )


class PhysioNet2012(Source):
    """Stays as records; see the module's text."""

    Options: ClassVar[type[SourceOptions]] = PhysioNet2012Options

    def __init__(self, options: PhysioNet2012Options) -> None:
        super().__init__(options)
        self.folder = absolute_path(options.path)
        self.sets = [name for name in "abc" if _archive(self.folder, name) is not None]
        if not self.sets:
            raise ValueError(
                f"{self.folder} holds neither set-a nor set-a.tar.gz (nor b, c): is it the challenge's data?"
            )
        for name in self.sets:
            if not (self.folder / f"Outcomes-{name}.txt").is_file():
                raise ValueError(
                    f"{self.folder} has set-{name} but no Outcomes-{name}.txt; the labels are in that file"
                )
        self.groups = _read_groups(self.folder / "modalities.json")
        self.splits_file = absolute_path(options.splits) if options.splits else None
        self.part_list = read_part_list(self.splits_file, ["RecordID"]) if self.splits_file else None
        self.static = options.static
        self.schema = _schema(self.groups, self.static)
        if self.static == "codes":
            self.vocabularies = {
                "descriptors": Vocabulary(tuple(c for own in CATEGORIES.values() for c in own.values()))
            }

    def units(self) -> list[tuple[str, int, int]]:
        """(set, first stay, end) pieces."""
        sizes = {name: len(_stay_names(str(_archive(self.folder, name)))) for name in self.sets}
        return [(name, a, min(a + _UNIT_STAYS, n)) for name, n in sizes.items() for a in range(0, n, _UNIT_STAYS)]

    def read(self, unit: tuple[str, int, int], notes: Counter[str]) -> Iterator[Record]:
        """Stays of one piece; those without any observation are counted and left out."""
        name, start, end = unit
        archive = str(_archive(self.folder, name))
        outcomes = _outcomes(str(self.folder / f"Outcomes-{name}.txt"))
        for stay in _stay_names(archive)[start:end]:
            notes["stays"] += 1
            record = self._record(stay, _load(archive)[stay], outcomes, notes)
            if record is not None:
                for split in self.part_list.splits if self.part_list else ():
                    notes[f"stays_without_part.{split}"] += split not in record.splits
                yield record

    def report(self, notes: Counter[str]) -> dict[str, Any]:
        """What was read, left out, and why."""
        if self.part_list is not None:
            here = {stay for name in self.sets for stay in _stay_names(str(_archive(self.folder, name)))}
            own = {
                "split_ids_unknown": len(self.part_list.parts.keys() - here),
                "split_ids_twice": self.part_list.twice,
            }
            notes = notes + Counter(own)
        return super().report(notes) | {
            "left_out": f"{notes['stays_without_observation']} stays hold no observation",
            "malformed": f"{notes['malformed_lines']} lines without a parameter name or value were left out",
            "splits": str(self.splits_file.name) if self.splits_file else "80/10/10 by hash of RecordID",
        }

    @cached_property
    def _channels(self) -> dict[str, tuple[int, int]]:
        """Parameter -> (group number, channel number)."""
        return {p: (g, c) for g, members in enumerate(self.groups.values()) for c, p in enumerate(members)}

    def _record(self, stay: str, text: str, outcomes: dict[str, tuple[int, int]], notes: Counter[str]) -> Record | None:
        static: dict[str, float] = {}
        events: list[list[tuple[float, int, float]]] = [[] for _ in self.groups]
        self._parse(stay, text, static, events, notes)
        if not any(events):
            notes["stays_without_observation"] += 1
            return None
        values: dict[str, Value] = {}
        for group, own in zip(self.groups, events, strict=True):
            if own:
                times, channels, numbers = zip(*own, strict=True)
                values[group] = Series(np.array(times, "f4"), np.array(channels, "i2"), np.array(numbers, "f4"))
        values |= _static_codes(static, notes) if self.static == "codes" else {"static": _static_vector(static)}
        if stay not in outcomes:
            raise ValueError(f"stay {stay} is not in the outcomes file of its set")
        days, death = outcomes[stay]
        targets: dict[str, np.ndarray | float | None] = {
            "in_hospital_death": None if death < 0 else float(death),
            "los_gt_7": None if days < 0 else float(days > LONG_STAY),
            "length_of_stay": None if days < 0 else float(days),
        }
        return Record(stay, values, targets, self._parts(stay), group=stay)

    def _parse(
        self,
        stay: str,
        text: str,
        static: dict[str, float],
        events: list[list[tuple[float, int, float]]],
        notes: Counter[str],
    ) -> None:
        """Fill ``static`` (descriptors at 00:00, the first of each) and ``events`` per group from a stay's lines."""
        lines = text.splitlines()
        if not lines or lines[0] != "Time,Parameter,Value":
            raise ValueError(f"stay {stay}: the first line is {lines[:1]}, not 'Time,Parameter,Value'")
        channels, hours = self._channels, _HOURS
        for line in lines[1:]:
            time, _, rest = line.partition(",")
            parameter, _, value = rest.partition(",")
            if time == "00:00" and parameter in DESCRIPTORS and parameter not in static:
                static[parameter] = float(value)
                continue
            place, hour = channels.get(parameter), hours.get(time)
            if not parameter or not value:
                notes["malformed_lines"] += 1
            elif place is None or hour is None:
                raise ValueError(
                    f"stay {stay}: line {line!r} has an unknown parameter or a time outside 00:00 to 48:00"
                )
            else:
                events[place[0]].append((hour, place[1], float(value)))
                notes["observations"] += 1

    def _parts(self, stay: str) -> dict[str, str]:
        if self.part_list is None:
            return {"default": hashed_part(stay, SHARES)}
        if stay in self.part_list.parts:
            return self.part_list.parts[stay]
        if self.part_list.tests_only:
            return {"default": hashed_part(stay, SHARES_BUT_TEST)}
        raise ValueError(
            f"stay {stay} is not in {self.splits_file}; give it a row, with empty cells if no split uses it"
        )


_HOURS = {f"{minute // 60:02d}:{minute % 60:02d}": minute / 60 for minute in range(48 * 60 + 1)}


def _schema(groups: dict[str, tuple[str, ...]], static: str) -> DatasetSchema:
    series = [ModalitySpec(g, "series", channels=c, time_unit="hours", horizon=HORIZON) for g, c in groups.items()]
    names = STATIC if static == "vector" else NUMBERS
    about = "0 where unknown; *_known says which"
    own = [ModalitySpec("static", "vector", channels=names, shape=(len(names),), description=about)]
    if static == "codes":
        own.insert(0, ModalitySpec("descriptors", "codes", description="gender and kind of ward"))
    tasks = (
        TaskSpec("in_hospital_death", "binary", classes=("survived", "died")),
        TaskSpec("los_gt_7", "binary", classes=("at most 7 days", "more than 7 days")),
        TaskSpec("length_of_stay", "regression", dim=1, unit="days"),
    )
    return DatasetSchema("physionet2012", (*series, *own), tasks)


def _static_vector(static: dict[str, float]) -> np.ndarray:
    """float32 [13]: age (years), gender (1 male), height (cm), ICU one-hot, weight (kg), then which are known."""
    get = {name: static.get(name, -1.0) for name in DESCRIPTORS}
    known = {name: value >= 0 for name, value in get.items()}
    known["ICUType"] = get["ICUType"] in (1, 2, 3, 4)
    icu = [float(get["ICUType"] == kind) for kind in (1, 2, 3, 4)]
    value = {name: get[name] if known[name] else 0.0 for name in DESCRIPTORS}
    order = ("Age", "Gender", "Height", "ICUType", "Weight")
    features = [value["Age"], value["Gender"], value["Height"], *icu, value["Weight"]]
    return np.array(features + [float(known[name]) for name in order], np.float32)


def _static_codes(static: dict[str, float], notes: Counter[str]) -> dict[str, Value]:
    """Age (years), height (cm), weight (kg) and which of them are known, float32 [6]; codes of what is no number."""
    value = [static.get(name, -1.0) for name in ("Age", "Height", "Weight")]
    known = [number >= 0 for number in value]
    numbers = [number if there else 0.0 for number, there in zip(value, known, strict=True)]
    found: dict[str, Value] = {"static": np.array([*numbers, *map(float, known)], np.float32)}
    codes = [codes[static[name]] for name, codes in CATEGORIES.items() if static.get(name) in codes]  # type: ignore[index]
    notes["descriptors_unknown"] += len(CATEGORIES) - len(codes)
    return found | ({"descriptors": Codes(codes)} if codes else {})


def _archive(folder: Path, name: str) -> Path | None:
    for path in (folder / f"set-{name}", folder / f"set-{name}.tar.gz"):
        if path.exists():
            return path
    return None


@lru_cache(maxsize=1)
def _load(archive: str) -> dict[str, str]:
    """Stay -> text of its file. Only plain ``<digits>.txt`` files are read, nothing is unpacked to disk."""
    path, texts = Path(archive), {}
    if path.is_dir():
        for file in sorted(path.glob("*.txt")):
            if file.stem.isdigit():
                texts[file.stem] = file.read_text("ascii")
        return texts
    with tarfile.open(path, "r:gz") as archive_file:
        for member in archive_file:
            stay, _, suffix = member.name.rpartition("/")[2].partition(".")
            if not member.isfile() or not stay.isdigit() or suffix != "txt":
                continue
            if member.size > MAX_FILE:
                raise ValueError(
                    f"{archive}: {member.name} claims {member.size} bytes, at most {MAX_FILE} are plausible"
                )
            stream = archive_file.extractfile(member)
            assert stream is not None, "a plain file has content"
            texts[stay] = stream.read().decode("ascii")
    return dict(sorted(texts.items()))


@lru_cache(maxsize=3)
def _stay_names(archive: str) -> list[str]:
    return list(_load(archive))


@lru_cache(maxsize=3)
def _outcomes(path: str) -> dict[str, tuple[int, int]]:
    """Stay -> (length of stay in days, in-hospital death); -1 is unknown."""
    with Path(path).open(newline="") as stream:
        rows = csv.DictReader(stream)
        needed = ("RecordID", "Length_of_stay", "In-hospital_death")
        if not set(needed) <= set(rows.fieldnames or ()):
            raise ValueError(f"{path} lacks one of the columns {', '.join(needed)}")
        return {row["RecordID"]: (int(row["Length_of_stay"]), int(row["In-hospital_death"])) for row in rows}


def _read_groups(path: Path) -> dict[str, tuple[str, ...]]:
    if not path.is_file():
        return GROUPS
    groups = json.loads(path.read_text())["modalities"]
    return {str(name): tuple(map(str, members)) for name, members in groups.items()}
