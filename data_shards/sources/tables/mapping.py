"""The mapping file of the source ``tables``: which columns of which files make up a record.

Every section refuses keys it does not know; a mistake becomes one sentence with the place in the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from data_shards.records.record import unusual_part
from data_shards.records.schema import TaskKind
from data_shards.sources.readers.csv_dialect import Dialect
from data_shards.sources.tables.modalities import (
    ABOUT_CSV,
    ABOUT_FILE,
    ABOUT_KEY,
    ABOUT_REPLACE,
    ABOUT_UNKNOWN,
    AnyModality,
    Modality,
    Policy,
    Section,
    Times,
)
from data_shards.yaml_file import read_yaml

_KINDS = ("series", "vector", "text", "image", "waveform", "codes")


class Records(Section):
    """One row per record."""

    file: str = Field(
        description="CSV, Parquet or JSON-lines file with one row per record, or a pattern such as rows/**/*.parquet; "
        "folders named column=value are columns, too"
    )
    key: str = Field(description="column that names the record: letters, digits, '_' and '-', unique")
    keys: Literal["plain", "escape"] = Field(
        "plain",
        description="escape: any text may be a key; '_' and what a key cannot hold become '_' and two hexadecimal "
        "digits for each byte of UTF-8, a.jpg becomes a_2ejpg (back: unescape_key in data_shards.records.record)",
    )
    group: str | None = Field(
        None,
        description="column that says what belongs together, e.g. a patient; an empty cell is a group of its own, and "
        "counted",
    )
    csv: Dialect | None = Field(None, description=ABOUT_CSV)
    need_any: tuple[str, ...] = Field(
        (), description="modalities of which a record must have at least one; records without any are left out, counted"
    )


class Split(Section):
    """Parts of the data: by hash of the group (``shares``), or as columns of the records' file or another one say."""

    shares: dict[str, float] = Field(
        default_factory=dict, description="part -> share, e.g. {train: 0.8, val: 0.1, test: 0.1}; groups stay together"
    )
    seed: int = Field(0, description="another seed makes another division by shares")
    columns: dict[str, str] = Field(
        default_factory=dict, description="name of a split -> column with its parts; an empty cell leaves a record out"
    )
    file: str | None = Field(None, description="file with the columns, if not the one of the records")
    key: str | None = Field(None, description="column of that file that names the record or, with by: group, the group")
    by: Literal["record", "group"] = Field("record", description="what the key of that file names")
    rename: dict[str, str] = Field(default_factory=dict, description="cell -> part, e.g. {valid: val}")
    csv: Dialect | None = Field(None, description=ABOUT_CSV)

    @model_validator(mode="after")
    def _usual_names(self) -> Split:
        for part in (*self.shares, *self.rename.values()):
            if problem := unusual_part(part):
                raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _one_way(self) -> Split:
        if bool(self.shares) == bool(self.columns):
            raise ValueError("give either shares (part: share) or columns (split: column)")
        if any(not 0 <= share <= 1 for share in self.shares.values()):
            raise ValueError("each of the shares lies between 0 and 1")
        if self.shares and abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"shares add up to {sum(self.shares.values()):g}, not to 1")
        if self.file is not None and self.key is None:
            raise ValueError("a split file needs the name of its key column (key)")
        return self


class Task(Times):
    """Something to predict. An empty cell is an unlabelled record.

    With a time the labels are those of moments: one row a moment, any number a record, which is then seen up to each.
    """

    kind: TaskKind = Field(description="binary, multiclass, multilabel, regression or survival")
    column: str | None = Field(None, description="column with the label")
    columns: tuple[str, ...] = Field((), description="multilabel and regression: one column a label or target")
    classes: tuple[str, ...] | dict[str, tuple[str, ...]] = Field(
        (),
        description="multiclass: the cells there are, in order; binary: (no, yes), either the cells themselves or "
        "names for cells 0/1, no/yes, false/true; or name -> all cells that mean it, e.g. {no: [N, 0, home], yes: [Y, "
        "1, expired]}; survival: of seen, as binary",
    )
    other_labels: Policy = Field(
        "error", description="labels that classes does not list: an error, or unlabelled (counted)"
    )
    seen: str | None = Field(
        None, description="survival: column that says whether the event was seen (1) or the record was left before (0)"
    )
    intervals: int | None = Field(
        None, ge=1, description="survival: number of intervals, with equally many seen events of the training part"
    )
    edges: tuple[float, ...] = Field((), description="survival: upper ends of the intervals, ascending, instead")
    replace: dict[str, float | None] = Field(default_factory=dict, description=ABOUT_REPLACE)
    file: str | None = Field(None, description=ABOUT_FILE)
    key: str | None = Field(None, description=ABOUT_KEY)
    csv: Dialect | None = Field(None, description=ABOUT_CSV)
    unknown_keys: Policy = Field("error", description=ABOUT_UNKNOWN)
    unit: str = Field("", description="unit of a regression target")
    description: str = Field("", description="for people")

    @field_validator("classes", mode="before")
    @classmethod
    def _one_cell_is_a_list(cls, given: Any) -> Any:
        if isinstance(given, dict):
            return {name: [cells] if isinstance(cells, str | int | float) else cells for name, cells in given.items()}
        return given

    @model_validator(mode="after")
    def _classes_differ(self) -> Task:
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"classes names one twice: {', '.join(self.names)}")
        if self.kind == "multiclass" and not self.classes:
            raise ValueError("a multiclass task lists its classes: the cells there are, in order")
        if isinstance(self.classes, dict):
            if self.kind not in ("binary", "multiclass", "survival"):
                raise ValueError(f"a {self.kind} task has one column a label, and no cells that mean a class")
            cells = [cell for own in self.classes.values() for cell in own]
            twice = next((cell for n, cell in enumerate(cells) if cell in cells[:n]), None)
            if twice is not None:
                raise ValueError(f"classes lists the cell {twice!r} twice, and a cell means one class")
        return self

    @model_validator(mode="after")
    def _columns_fit(self) -> Task:
        if self.kind == "survival":
            return self._survival_fits()
        if self.seen is not None or self.intervals is not None or self.edges:
            raise ValueError(f"seen, intervals and edges are for a survival task, and this one is {self.kind}")
        if self.replace and self.kind in ("binary", "multiclass"):
            raise ValueError("replace is for numbers; what cells mean is said in classes: {name: [cell, cell]}")
        many = self.kind == "multilabel" or (self.kind == "regression" and self.column is None)
        if bool(self.columns) != many or (self.column is None) != many:
            wanted = "columns (one a label)" if self.kind == "multilabel" else "column (regression: or columns)"
            raise ValueError(f"a {self.kind} task has {wanted}")
        return self

    def _survival_fits(self) -> Task:
        if self.time is None or self.seen is None or self.column is not None or self.columns or self.replace:
            raise ValueError("a survival task has time and seen (columns), and neither column, columns nor replace")
        if (self.intervals is None) == (not self.edges):
            raise ValueError("a survival task has either intervals (their number) or edges (their upper ends)")
        if any(not low < high for low, high in zip((0.0, *self.edges), self.edges, strict=False)):
            raise ValueError(f"edges {list(self.edges)} must be above 0 and ascending")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Classes in order."""
        return tuple(self.classes)

    @property
    def at_moments(self) -> bool:
        """Whether its labels have times."""
        return self.time is not None and self.kind != "survival"


class Mapping(Section):
    """The whole file."""

    name: str = Field(description="name of the data set")
    description: str = Field("", description="for people")
    records: Records = Field(description="one row per record")
    split: Split = Field(
        default_factory=lambda: Split(shares={"train": 0.8, "val": 0.1, "test": 0.1}),
        description="parts of the data; default: 80/10/10 by hash of the group",
    )
    modalities: dict[str, AnyModality] = Field(min_length=1, description="name -> where it is")
    tasks: dict[str, Task] = Field(default_factory=dict, description="name -> where its labels are")
    csv: Dialect = Field(default_factory=Dialect, description="how CSV files are written; a file may say otherwise")

    @model_validator(mode="after")
    def _windows(self) -> Mapping:
        """Where a record is seen up to moments, the longest time seen says nothing of the window before them."""
        timed = {name: task for name, task in self.tasks.items() if task.at_moments}
        for name, modality in self.modalities.items():
            if not timed or not modality.timed:
                continue
            if modality.horizon is None:
                raise ValueError(
                    f"task {min(timed)} has labels at moments, so modality {name} needs horizon: how long before a "
                    "moment is seen"
                )
        return self

    @property
    def has_moments(self) -> bool:
        """Whether records are seen up to moments."""
        return any(task.at_moments for task in self.tasks.values())

    def place(self, section: Modality | Task) -> tuple[str, str]:
        """File and key column of a section."""
        return section.file or self.records.file, section.key or self.records.key

    def dialect(self, file: str) -> Dialect:
        """How one file is written: what a section says of it, before what the mapping says of all.

        Raises:
            ValueError: two sections say different things of it.
        """
        own: Dialect | None = None
        for section in (self.records, self.split, *self.modalities.values(), *self.tasks.values()):
            if (section.file or self.records.file) != file or section.csv is None:
                continue
            if own is not None and own != section.csv:
                raise ValueError(f"two sections say with csv how {file} is written, and not the same")
            own = section.csv
        if own is None:
            return self.csv
        return Dialect.model_validate(self.csv.model_dump(exclude_unset=True) | own.model_dump(exclude_unset=True))


def read_mapping(path: Path) -> Mapping:
    """The mapping in a YAML file.

    Raises:
        ValueError: no such file, no YAML, an unknown or illegal entry; says where.
    """
    tree = read_yaml(path, "mapping file")
    try:
        mapping = Mapping.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"mapping file {path}: {_sentence(error)}") from None
    unknown = sorted(set(mapping.records.need_any) - set(mapping.modalities))
    if unknown:
        raise ValueError(f"mapping file {path}: records.need_any names {', '.join(unknown)}, which is no modality")
    return mapping


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    # pydantic names the chosen kind as a step of the path; a modality may itself have such a name
    place = [str(part) for i, part in enumerate(first["loc"]) if not (i == 2 and part in _KINDS)]
    message = str(first["msg"]).removeprefix("Value error, ")
    given = "" if first["type"] in ("missing", "value_error", "extra_forbidden") else f" (given: {first['input']!r})"
    if first["type"] == "extra_forbidden":
        message = "there is no such entry"
    return f"{'.'.join(place) or 'the file'}: {message}{given}"
