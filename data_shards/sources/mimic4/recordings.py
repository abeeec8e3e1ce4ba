"""Files of MIMIC-IV that are not plain tables: ECG recordings and definitions of phenotypes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.paths import absolute_path
from data_shards.sources.readers.table_files import read_small
from data_shards.yaml_file import read_yaml

GAP = -32768  # WFDB format 16: no value


@dataclass(frozen=True)
class Ecg:
    """float32 [L, 12] in mV, and the number of samples that had no value (they are 0)."""

    values_LC: np.ndarray
    gaps: int


@dataclass(frozen=True)
class Phenotypes:
    """Diagnosis codes (ICD-9, without dots) -> phenotype number, and the way from ICD-10 to ICD-9."""

    names: tuple[str, ...]
    codes: dict[str, int]
    icd10: dict[str, str]

    def labels(self, codes: list[tuple[str, str]]) -> np.ndarray:
        """float32 [phenotypes]: 1 where one of the (code, version) pairs belongs to it."""
        labels = np.zeros(len(self.names), np.float32)
        for code, version in codes:
            plain = code.strip().replace(".", "")
            number = self.codes.get(self.icd10.get(plain, "") if version.strip() == "10" else plain)
            if number is not None:
                labels[number] = 1
        return labels


def maybe_table(folder: Path, name: str) -> Path | None:
    """The .csv.gz or .csv of that name below the folder, if there is one."""
    found = (folder / f"{name}{suffix}" for suffix in (".csv.gz", ".csv"))
    return next((path for path in found if path.is_file()), None)


def find_table(folder: Path, name: str) -> Path:
    """The same; ValueError if there is none."""
    path = maybe_table(folder, name)
    if path is None:
        raise ValueError(f"{folder / name}.csv (or .csv.gz) does not exist; is {folder} the folder of hosp/ and icu/?")
    return path


def read_phenotypes(definitions: str | None, icd10: str | None) -> Phenotypes:
    """Definitions in the layout of the mimic3-benchmarks file: name -> {use_in_benchmark, codes}.

    Raises:
        ValueError: a file is missing or of another layout.
    """
    if definitions is None or icd10 is None:
        raise ValueError(
            "task=phenotypes needs -o definitions=FILE (YAML: name -> codes) and -o icd10=FILE (CSV: icd10cm, icd9cm)"
        )
    tree = read_yaml(absolute_path(definitions), "definitions file")
    try:
        used = {name: entry for name, entry in tree.items() if entry.get("use_in_benchmark", True)}
        codes = {str(code): n for n, name in enumerate(sorted(used)) for code in used[name]["codes"]}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{definitions} is not a YAML of phenotype -> codes: {error!r}") from error
    crosswalk = absolute_path(icd10)
    if not crosswalk.is_file():
        raise ValueError(f"{icd10} does not exist")
    table = read_small(crosswalk, {"icd10cm": "text", "icd9cm": "text"})
    # Several ICD-9 codes may stand for one of ICD-10; the first is the one that fits best.
    pairs = zip(reversed(table["icd10cm"]), reversed(table["icd9cm"]), strict=True)
    return Phenotypes(tuple(sorted(used)), codes, {str(new): str(old) for new, old in pairs})


def read_ecg(path: Path, step: int) -> Ecg:
    """A WFDB record of twelve leads in format 16 (``path`` without suffix), every ``step`` samples averaged.

    Raises:
        ValueError: no such record, or one of another format.
    """
    try:
        lines = [line for line in path.with_suffix(".hea").read_text("ascii").splitlines() if line[:1] != "#"]
        raw = path.with_suffix(".dat").read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"ECG {path} cannot be read: {error}") from error
    leads, samples = (int(word) for word in (lines[0].split()[1], lines[0].split()[3]))
    formats = [line.split() for line in lines[1 : 1 + leads]]
    if leads != 12 or any(words[1] != "16" for words in formats) or len(raw) != 2 * leads * samples:
        raise ValueError(f"ECG {path}: {leads} leads of format {formats[0][1]}, {len(raw)} bytes; expected 12 of 16")
    gain_baseline = [_gain(words[2]) for words in formats]
    gain, baseline = np.array(gain_baseline, np.float64).T
    counts = np.frombuffer(raw, "<i2").reshape(samples, leads)
    gap = counts == GAP
    values = np.where(gap, 0.0, (counts - baseline) / gain)
    length = samples // step * step
    averaged = values[:length].reshape(-1, step, leads).mean(axis=1)
    return Ecg(averaged.astype(np.float32), int(gap.sum()))


def _gain(word: str) -> tuple[float, float]:
    """(units per mV, value of 0 mV) of ``200.0(0)/mV``, ``200/mV`` or ``200``; 0 means the default of 200."""
    number = word.partition("/")[0]
    gain, _, rest = number.partition("(")
    return float(gain) or 200.0, float(rest.rstrip(")") or 0)
