"""Lists that say which stay, patient or record is in which part: official splits of a data set.

A CSV with a column of ids and one column per split, whose cells are parts (train, val, test, or empty); or with the
column of ids alone, which lists the test part.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_shards.records.record import PART, unusual_part

TEST, DEFAULT = "test", "default"


@dataclass(frozen=True)
class PartList:
    """Parts by id.

    Attributes:
        file: for messages. key: name of the column of ids. splits: names of the splits.
        parts: id -> split -> part, without empty cells. tests_only: it lists the test part, and nothing is said of the
            others. twice: ids that are listed more than once, always with the same parts.
    """

    file: Path
    key: str
    splits: tuple[str, ...]
    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    tests_only: bool = False
    twice: int = 0


def plain_id(cell: str) -> str:
    """An id as it is meant: without blanks around it, and 17 for 17.0, as a column of numbers with gaps is written."""
    return re.sub(r"^(\d+)\.0+$", r"\1", cell.strip())


def read_part_list(file: Path, keys: Sequence[str]) -> PartList:
    """The list in a CSV file.

    Also a file without header and with two whole numbers a line: an id, and 1 for test or 0 (testset.csv of the MIMIC
    benchmarks).

    Args:
        keys: columns that may hold the ids; the first that is there does, the others are no splits.

    Raises:
        ValueError: no such file, no column of ids, an id twice with different parts, or a part that nothing would use.
    """
    if not file.is_file():
        raise ValueError(f"splits file {file} does not exist")
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = [row for row in csv.reader(stream) if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"splits file {file} cannot be read as CSV in UTF-8: {error}") from error
    head = [cell.strip() for cell in rows[0]] if rows else []
    if len(head) == 2 and all(row[0].strip().isdigit() and row[1:] and row[1].strip() in ("0", "1") for row in rows):
        listed = [[row[0]] for row in rows if row[1].strip() == "1"]
        return _collect(file, keys[-1], [keys[-1]], listed, 1)
    found = [key for key in keys if key in head]
    if not found:
        raise ValueError(
            f"splits file {file} has no column {' or '.join(keys)}; its columns are {', '.join(head) or 'none'}"
        )
    if len(set(head)) < len(head):
        raise ValueError(f"splits file {file} has two columns of one name: {', '.join(head)}")
    others = {head.index(key) for key in keys if key in head}
    head = [name if number not in others or name == found[0] else "" for number, name in enumerate(head)]
    return _collect(file, found[0], head, rows[1:], 2)


def _collect(file: Path, key: str, head: list[str], rows: list[list[str]], first_line: int) -> PartList:
    place = head.index(key)
    splits = {number: name for number, name in enumerate(head) if number != place and name}
    parts: dict[str, dict[str, str]] = {}
    twice = 0
    for number, row in enumerate(rows, first_line):
        if len(row) != len(head):
            raise ValueError(f"splits file {file}, row {number}: {len(row)} cells, and the first row has {len(head)}")
        own = {name: row[column].strip() for column, name in splits.items() if row[column].strip()}
        own = own if splits else {DEFAULT: TEST}
        for part in own.values():
            problem = unusual_part(part) or (None if PART.fullmatch(part) else f"{part!r} cannot be a part's name")
            if problem:
                raise ValueError(f"splits file {file}, row {number}: {problem}")
        name = plain_id(row[place])
        if parts.setdefault(name, own) != own:
            raise ValueError(f"splits file {file}, row {number}: {key} {name} has other parts in an earlier row")
        twice += parts[name] is not own
    if not parts:
        raise ValueError(f"splits file {file} lists no {key}")
    return PartList(file, key, tuple(splits.values()) or (DEFAULT,), parts, not splits, twice)
