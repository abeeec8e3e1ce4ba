"""How the CSV files of a folder are likely to be written: separator, decimal mark, form of dates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from data_shards.sources.readers.csv_dialect import Dialect

_LINES = 200  # of each file that is looked at
_DECIMAL = re.compile(r"^-?\d+,\d+$")
# Day first where a point separates; where a stroke does nobody knows, and the first that fits all cells is taken.
_DATES = (
    ("%d.%m.%Y %H:%M:%S", r"\d{1,2}\.\d{1,2}\.\d{4} \d{1,2}:\d\d:\d\d"),
    ("%d.%m.%Y %H:%M", r"\d{1,2}\.\d{1,2}\.\d{4} \d{1,2}:\d\d"),
    ("%d.%m.%Y", r"\d{1,2}\.\d{1,2}\.\d{4}"),
    ("%m/%d/%Y %H:%M", r"(?:0?[1-9]|1[0-2])/\d{1,2}/\d{4} \d{1,2}:\d\d"),
    ("%d/%m/%Y %H:%M", r"\d{1,2}/\d{1,2}/\d{4} \d{1,2}:\d\d"),
    ("%m/%d/%Y", r"(?:0?[1-9]|1[0-2])/\d{1,2}/\d{4}"),
    ("%d/%m/%Y", r"\d{1,2}/\d{1,2}/\d{4}"),
)


def likely_dialect(paths: Sequence[Path]) -> tuple[Dialect, str]:
    """One dialect for all CSV files of a folder, and why it is not the default.

    Raises:
        ValueError: their heads are separated by different marks.
    """
    cells: list[str] = []
    marks: dict[str, str] = {}  # mark -> the first file with it
    for path in paths:
        name = path.name.lower()
        if ".tsv" in name or not any(kind in name for kind in (".csv", ".txt")):
            continue
        lines = _head(path)
        if not lines:
            continue
        counts = {mark: lines[0].count(mark) for mark in (",", ";", "\t", "|")}
        mark = max(counts, key=lambda one: counts[one])
        if counts[mark]:  # a single column says nothing
            marks.setdefault(mark, path.name)
        cells += [cell.strip().strip('"') for line in lines[1:] for cell in line.split(mark)]
    if len(marks) > 1:
        (mark, name), (other, second) = list(marks.items())[:2]
        raise ValueError(
            f"{name} is separated by {mark!r} and {second} by {other!r}, and one way of writing is drafted for all "
            "files: write them alike, or the mapping by hand with a section csv beside each file"
        )
    said: dict[str, str] = {}
    if marks and "," not in marks:
        said["separator"] = min(marks)
        if any(_DECIMAL.match(cell) for cell in cells):
            said["decimal"] = ","
    for form, pattern in _DATES:
        found = [
            cell for cell in cells if re.fullmatch(r"[\d./: ]+", cell) and re.search(r"[./]\d{1,2}[./]\d{4}", cell)
        ]
        if found and all(re.fullmatch(pattern, cell) for cell in found):
            said["date"] = form
            break
    about = ", ".join(f"{key} {value!r}" for key, value in said.items())
    return Dialect.model_validate(said), f"how the files seem to be written: {about}"


def _head(path: Path) -> list[str]:
    """The first lines; bytes of another encoding as they come, as whoever reads the file will say so."""
    try:
        with pa.input_stream(str(path)) as stream:
            text = stream.read(1 << 16).decode("utf-8", "replace")
    except OSError:
        return []
    return text.removeprefix("\ufeff").splitlines()[:_LINES]
