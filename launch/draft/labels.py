"""What is to be predicted: the kind of a column with labels, and which column looks like one."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from data_shards.sources.tables.labels import FALSE, TRUE
from launch.draft.draft import Draft, legal_name
from launch.draft.profile import Column, Table

logger = logging.getLogger(__name__)

_LABEL = re.compile(
    r"(?:^|_)(?:label|target|class|outcome|y|response|diagnosis|died|dead|death|mortality|survived|churn|readmitted)$",
    re.I,
)
# Of two words the one that is asked for.
_YES = re.compile(
    r"^(?:y|t|true|yes|pos|positive|died|dead|expired|death|event|sick|ill|abnormal|malignant|case|spam)$", re.I
)
MOST_CLASSES = 50  # whole numbers of more different values are amounts


def likely_label(columns: Sequence[Column]) -> Column | None:
    """The column whose name says that it is to be predicted, the last of them."""
    named = [c for c in columns if _LABEL.search(c.name) and c.kind in ("number", "text") and len(c.words or "12") > 1]
    return named[-1] if named else None


def label_section(column: Column) -> tuple[dict[str, Any], str]:
    """What a mapping says of labels in a column, and why. Raises ValueError: they are none that can be learned."""
    words = list(column.words or {})
    known = set(words) <= {*TRUE, *FALSE}
    numeric = column.kind == "number"
    if numeric and column.words is not None and column.whole and not known:
        words.sort(key=float)
    else:
        words.sort()
    if column.words is not None and len(words) == 2:
        if known:
            return {"kind": "binary", "column": column.name}, "two classes"
        words.sort(key=lambda word: bool(_YES.match(word)))
        return {"kind": "binary", "column": column.name, "classes": words}, f"of the two classes {words[1]!r} is yes"
    if numeric and not (column.whole and column.words is not None and len(words) <= MOST_CLASSES):
        return {"kind": "regression", "column": column.name, **_fine(column)}, "a number"
    if column.kind in ("number", "text") and column.words is not None and 2 < len(words) <= 1000:
        return {"kind": "multiclass", "column": column.name, "classes": words}, f"one of {len(words)} classes"
    found = "one value" if len(words) == 1 else column.kind or "nothing that is read"
    raise ValueError(f"column {column.name!r} cannot be learned as it is: it holds {found}")


def add_tasks(table: Table, given: str | Sequence[str] | Mapping[str, Any], draft: Draft) -> None:
    """Tasks from names of columns of the records, or as a mapping says them.

    Raises:
        ValueError: a column that is not there, or that holds no labels.
    """
    if isinstance(given, Mapping):
        for name, section in given.items():
            draft.tree["tasks"][name] = dict(section) if isinstance(section, Mapping) else section
        return
    for name in [given] if isinstance(given, str) else given:
        if name not in table.columns:
            raise ValueError(f"there is no column {name!r} to predict; {table.file} has {', '.join(table.columns)}")
        section, why = label_section(table.columns[name])
        task = legal_name(name, draft.tree["tasks"])
        draft.tree["tasks"][task] = section
        draft.doubt(f"tasks.{task}", f"{section['kind']}: {why}")
        for other in telling(table, table.columns[name]):
            if other not in given:
                what = f"column {other!r} says the same in every row: leave it out unless it is known beforehand"
                logger.warning("what is to be predicted, %r: %s", name, what)
                draft.doubt(f"tasks.{task}", what)


def telling(table: Table, label: Column) -> list[str]:
    """Columns with another word for each class of a label and one for all of its rows."""
    if label.words is None:
        return []
    alike = [
        column.name
        for column in table.columns.values()
        if column is not label and column.words is not None and len(column.words) == len(label.words)
    ]
    if not alike:
        return []
    cells = table.read(dict.fromkeys([label.name, *alike], "text")).filter(pc.field(label.name).is_valid())
    return [name for name in alike if len(cells.group_by([label.name, name]).aggregate([])) == len(label.words)]


def _fine(column: Column) -> dict[str, str]:
    return {"rounding": "allow"} if column.too_fine else {}
