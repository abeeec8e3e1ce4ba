"""Phenotypes of MIMIC-IV: groups of ICD-9 diagnoses, to which ICD-10 diagnoses come by a table of equivalents.

Codes are compared without dots, blanks and case on both sides; ICD-9 and ICD-10 are never mixed. A code of ICD-9 has at
least three digits: one with fewer has gone through a program that took codes for numbers, and 389 may be 0389 or 389.
Such definitions and tables are refused. Diagnoses are read as they are written and counted; ``icd9_zeros=restore``
gives back the zeros of codes that then are, in only one way, a code of the definitions or of the table.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_shards.paths import absolute_path
from data_shards.sources.readers.table_files import read_small
from data_shards.yaml_file import read_yaml

FEWEST = 0.1  # share of the diagnoses in ICD-10 that the table must know
MANY = 100  # so many diagnoses of one version of ICD cannot all be in no phenotype
ALWAYS_ZEROS = 500  # so many diagnoses in ICD-9 cannot all be without a zero in front
_LOST_ZEROS = re.compile(r"\d{1,2}(\.\d*)?|\d{4,}\.\d*")  # 10 for 001.0, 38.9 for 038.9, 4019.0 for 4019
_NO_EQUIVALENT = "NODX"  # how the tables of equivalents say that there is none
Code = tuple[str, str]  # as it is written, version


def plain_code(code: str) -> str:
    """A code without dots, blanks and case."""
    return "".join(code.split()).replace(".", "").upper()


@dataclass
class Phenotypes:
    """ICD-9 codes -> numbers of phenotypes, and the way from ICD-10 to ICD-9; all of them plain.

    Attributes:
        names: of the phenotypes, sorted. codes: ICD-9 -> numbers of its phenotypes. icd10: ICD-10 -> its equivalents,
            in the order of the table. several: which of them count. restored: ICD-9 as written -> with its zeros.
    """

    names: tuple[str, ...]
    codes: dict[str, tuple[int, ...]]
    icd10: dict[str, tuple[str, ...]]
    several: Literal["first", "all"] = "first"
    restored: dict[str, str] = field(default_factory=dict)

    def labels(self, codes: Iterable[Code]) -> np.ndarray:
        """float32 [phenotypes]: 1 where one of the (code, version) pairs belongs to it."""
        labels = np.zeros(len(self.names), np.float32)
        for code, version in codes:
            labels[list(self.of(code, version))] = 1
        return labels

    def of(self, code: str, version: str) -> set[int]:
        """Numbers of the phenotypes of a code."""
        plain = plain_code(code)
        if plain_version(version) == "10":
            own = self.icd10.get(plain, ())[: 1 if self.several == "first" else None]
        else:
            own = (self.restored.get(plain, plain),)
        return {number for icd9 in own for number in self.codes.get(icd9, ())}

    def count(self, rows: Mapping[Code, int], file: Path, restore: bool) -> Counter[str]:
        """How many of the diagnoses (code, version) -> rows map to what, for the report.

        Args:
            restore: whether ICD-9 codes get back zeros that were lost, where there is one way (kept in ``restored``).

        Raises:
            ValueError: a version that is neither 9 nor 10, or definitions and table that match (nearly) nothing.
        """
        notes = Counter[str]()
        self._restore(rows, notes, restore)
        for (code, version), count in rows.items():
            icd, plain = f"icd{plain_version(version)}", plain_code(code)
            if not plain or icd not in ("icd9", "icd10"):
                raise ValueError(f"{file}: code {code!r} of ICD version {version!r}; versions are 9 and 10")
            known = icd == "icd9" or plain in self.icd10
            what = "without_icd9" if not known else "in_a_phenotype" if self.of(code, version) else "in_no_phenotype"
            notes[f"{icd}_rows_{what}"] += count
            notes[f"{icd}_codes_{what}"] += 1
            notes["icd10_rows_with_several_icd9"] += count * (icd == "icd10" and len(self.icd10.get(plain, ())) > 1)
        self._refuse_mismatch(notes, file)
        return notes

    def _refuse_mismatch(self, notes: Counter[str], file: Path) -> None:
        lost = notes["icd10_rows_without_icd9"]
        rows = lost + notes["icd10_rows_in_a_phenotype"] + notes["icd10_rows_in_no_phenotype"]
        if rows and lost > (1 - FEWEST) * rows:
            raise ValueError(
                f"{file}: the table of -o icd10 knows {rows - lost:,} of {rows:,} diagnoses in ICD-10; is it the one "
                "from ICD-10-CM to ICD-9-CM (columns icd10cm, icd9cm)?"
            )
        used = {icd: notes[f"{icd}_rows_in_a_phenotype"] for icd in ("icd9", "icd10")}
        for icd in used:
            in_none = notes[f"{icd}_rows_in_no_phenotype"]
            if not used[icd] and in_none >= (MANY if any(used.values()) else 1):
                raise ValueError(
                    f"{file}: none of the {in_none:,} diagnoses in ICD-{icd[3:]} belongs to a phenotype; are the "
                    "codes of -o definitions, and the column icd9cm of -o icd10, those of ICD-9?"
                )

    def _restore(self, rows: Mapping[Code, int], notes: Counter[str], restore: bool) -> None:
        """Find ICD-9 codes that may have lost zeros, if some certainly have."""
        old = Counter[str]()
        for (code, version), count in rows.items():
            old[plain_code(code)] += count if plain_version(version) == "9" else 0
        digits = {code: count for code, count in old.items() if code.isdigit() and count}
        notes["icd9_rows_too_short"] += sum(count for code, count in digits.items() if len(code) < 3)
        no_zero = sum(digits.values()) >= ALWAYS_ZEROS and not any(code.startswith("0") for code in digits)
        if not notes["icd9_rows_too_short"] and not no_zero:
            return
        known = set(self.codes) | {code for own in self.icd10.values() for code in own}
        for code, count in digits.items():
            ways = [zeros + code for zeros in ("", "0", "00") if zeros + code in known]
            longer = [way for way in ways if way != code]
            notes["icd9_rows_with_two_readings"] += count if longer and len(ways) > 1 else 0
            if len(ways) == 1 and longer:
                notes[f"icd9_rows_zeros_{'restored' if restore else 'lost'}"] += count
                self.restored |= {code: ways[0]} if restore else {}


def lost_zeros(notes: Mapping[str, int]) -> str | None:
    """The sentence for a file of diagnoses that has lost zeros; None if it has not."""
    lost, restored = notes.get("icd9_rows_zeros_lost", 0), notes.get("icd9_rows_zeros_restored", 0)
    two = notes.get("icd9_rows_with_two_readings", 0)
    if not lost + restored + two:
        return None
    done = f"{restored} got them back" if restored else f"{lost} would get them back with -o icd9_zeros=restore"
    return (
        f"the diagnoses have lost the zeros in front of ICD-9 codes: {done}, {two} can mean two codes and are taken as "
        "they are written"
    )


def plain_version(version: str) -> str:
    """9 for 9.0, as a column with gaps is written."""
    return version.strip().removesuffix(".0")


@dataclass
class CountedRows:
    """Passes a table's rows on, and counts the codes of those whose admission is one of these."""

    keep: Callable[[pa.Table], pa.Table]
    admissions: pa.Array
    codes: Counter[Code] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows that ``keep`` keeps, of these admissions and with a code."""
        table = self.keep(table)
        own = table.filter(pc.is_in(table["hadm_id"], value_set=self.admissions))
        self.counts["diagnoses_of_other_admissions"] += len(table) - len(own)
        whole = own.filter(pc.and_(own["icd_code"].is_valid(), own["icd_version"].is_valid()))
        self.counts["diagnoses_without_code"] += len(own) - len(whole)
        groups = whole.group_by(["icd_code", "icd_version"]).aggregate([([], "count_all")])
        for row in groups.to_pylist():
            self.codes[row["icd_code"], row["icd_version"]] += row["count_all"]
        return whole


def read_phenotypes(
    definitions: str | None, icd10: str | None, several: Literal["first", "all"] = "first"
) -> Phenotypes:
    """Definitions in the layout of the mimic3-benchmarks file: name -> {use_in_benchmark, codes}.

    Raises:
        ValueError: a file is missing or of another layout, or its codes lost their zeros.
    """
    if definitions is None or icd10 is None:
        raise ValueError(
            "task=phenotypes needs -o definitions=FILE (YAML: name -> codes) and -o icd10=FILE (CSV: icd10cm, icd9cm)"
        )
    tree = read_yaml(absolute_path(definitions), "definitions file")
    try:
        used = {str(name): entry["codes"] for name, entry in tree.items() if entry.get("use_in_benchmark", True)}
        listed = {name: [str(code) for code in used[name]] for name in sorted(used)}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{definitions} is not a YAML of phenotype -> codes: {error!r}") from error
    if not listed:
        raise ValueError(f"{definitions} defines no phenotype (with use_in_benchmark: true)")
    codes: dict[str, set[int]] = {}
    for number, (name, own) in enumerate(listed.items()):
        for code in own:
            _refuse_number(code, f"{definitions}, {name}")
            codes.setdefault(plain_code(code), set()).add(number)
    sorted_codes = {code: tuple(sorted(numbers)) for code, numbers in codes.items()}
    return Phenotypes(tuple(listed), sorted_codes, _read_equivalents(absolute_path(icd10)), several)


def _read_equivalents(file: Path) -> dict[str, tuple[str, ...]]:
    """ICD-10 -> its equivalents in ICD-9, in the order of the table; without those that it says to have none."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist")
    table = read_small(file, {"icd10cm": "text", "icd9cm": "text"})
    found: dict[str, list[str]] = {}
    for row, (new, old) in enumerate(zip(table["icd10cm"], table["icd9cm"], strict=True), 1):
        if new is None or old is None:
            raise ValueError(f"{file}, row {row}: icd10cm or icd9cm is empty; leave the row out if there is none")
        if plain_code(old) == _NO_EQUIVALENT:
            continue
        _refuse_number(old, f"{file}, row {row}")
        own = found.setdefault(plain_code(new), [])
        own += [plain_code(old)] if plain_code(old) not in own else []
    return {new: tuple(own) for new, own in found.items()}


def _refuse_number(code: str, where: str) -> None:
    if _LOST_ZEROS.fullmatch(code.strip()):
        raise ValueError(
            f"{where}: {code} is no code of ICD-9, which has three digits before the dot; a program took codes for "
            "numbers, and 389 may have been 0389: write the file again with its codes as text"
        )
