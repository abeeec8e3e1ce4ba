"""The mapping file of the source ``tables``: which columns of which files make up a record.

Every section refuses keys it does not know; a mistake becomes one sentence with the place in the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_shards.records.record import unusual_part
from data_shards.records.schema import TaskKind
from data_shards.sources.readers.csv_dialect import Dialect
from data_shards.sources.readers.picture_values import Background
from data_shards.yaml_file import read_yaml

Policy = Literal["error", "skip"]
Rounding = Literal["error", "allow"]
_ABOUT_FILE = "file with the rows, or a pattern such as events/*.parquet; default: the file of the records"
_ABOUT_KEY = "column that says which record a row belongs to; default: the one of the records"
_ABOUT_CSV = "how this file is written, where that differs from the mapping's csv"
_ABOUT_UNKNOWN = "rows of records that are not in the records' file: an error, or left out (counted)"
_ABOUT_ROUNDING = (
    "numbers of a finer resolution than float32 has at their size (whole numbers above 16,777,216, say): an error, "
    "or rounded (counted)"
)


class Section(BaseModel):
    """A part of the mapping file."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


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
    csv: Dialect | None = Field(None, description=_ABOUT_CSV)
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
    csv: Dialect | None = Field(None, description=_ABOUT_CSV)

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


class Modality(Section):
    """What all kinds share."""

    file: str | None = Field(None, description=_ABOUT_FILE)
    key: str | None = Field(None, description=_ABOUT_KEY)
    csv: Dialect | None = Field(None, description=_ABOUT_CSV)
    unknown_keys: Policy = Field("error", description=_ABOUT_UNKNOWN)
    unit: str = Field("", description="unit of the values")
    description: str = Field("", description="for people")


class SeriesTable(Modality):
    """Irregular series: in long form one row an observation, in wide form (``columns``) one row a time."""

    kind: Literal["series"] = Field(description="says that it is one")
    time: str = Field(description="column with the time: numbers in time_unit, durations, or, with an origin, dates")
    time_unit: str = Field(
        "hours", description="unit of the times; for dates and durations: seconds, minutes, hours or days"
    )
    origin: str | None = Field(
        None, description="column of the records' file with the date that is time 0; the time column then holds dates"
    )
    date_unit: Literal["nanoseconds", "microseconds", "milliseconds", "seconds", "minutes", "hours", "days"] | None = (
        Field(None, description="dates, those of the origin too, are numbers: so many of these since 1970 (Unix times)")
    )
    horizon: float | None = Field(
        None,
        gt=0,
        description="length of the observation window, in time_unit; default: the longest time seen, which the report "
        "names",
    )
    outside: Policy = Field("error", description="observations before 0 or after the horizon")
    channel: str | None = Field(None, description="long form: column with the name of the channel")
    value: str | None = Field(None, description="long form: column with the value; empty = not observed")
    channels: tuple[str, ...] = Field((), description="long form: the channels that belong to this modality")
    other_channels: Policy = Field("error", description="long form: channels that no modality of this file lists")
    columns: tuple[str, ...] = Field((), description="wide form: one column a channel; empty = not observed")
    units: tuple[str, ...] = Field((), description="unit of each channel")
    max_length: int | None = Field(None, description="most observations a record may hold")
    rounding: Rounding = Field("error", description=_ABOUT_ROUNDING)

    @model_validator(mode="after")
    def _window(self) -> SeriesTable:
        if self.date_unit is not None and self.origin is None:
            raise ValueError("date_unit is for dates, which need their time 0: give origin, too")
        return self

    @model_validator(mode="after")
    def _one_form(self) -> SeriesTable:
        long = (self.channel is not None, self.value is not None, bool(self.channels))
        if bool(self.columns) == any(long) or any(long) != all(long):
            raise ValueError("a series has either channel, value and channels (long form) or columns (wide form)")
        if self.origin is not None and self.time_unit not in SECONDS:
            raise ValueError(f"time_unit {self.time_unit!r} of dates must be one of {', '.join(SECONDS)}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Channel names in order."""
        return self.columns or self.channels


class VectorTable(Modality):
    """A fixed number of features: one column each, or one column of lists (Parquet)."""

    kind: Literal["vector"] = Field(description="says that it is one")
    columns: tuple[str, ...] = Field((), description="one column a feature")
    column: str | None = Field(
        None, description="a Parquet column that holds a list of `size` numbers, e.g. embeddings"
    )
    size: int | None = Field(None, ge=1, description="length of those lists")
    empty: Literal["error", "zero", "known", "absent"] = Field(
        "error",
        description="an empty cell: is an error, becomes 0, becomes 0 and is told by a further feature <column>_known, "
        "or makes the whole vector absent; a row without any value is absent in any case but known and zero",
    )
    rounding: Rounding = Field("error", description=_ABOUT_ROUNDING)

    @model_validator(mode="after")
    def _one_form(self) -> VectorTable:
        if bool(self.columns) == (self.column is not None) or (self.column is None) != (self.size is None):
            raise ValueError("a vector has either columns, or column and size")
        return self


class TextTable(Modality):
    """Texts; several rows of one record are joined by line ends, in the order of the file."""

    kind: Literal["text"] = Field(description="says that it is one")
    column: str = Field(description="column with the text; empty = absent")
    max_length: int = Field(65_536, ge=1, description="most bytes (UTF-8) a record may hold")
    too_long: Literal["error", "cut"] = Field("error", description="longer texts: an error, or cut (counted)")


class ImageTable(Modality):
    """Pictures by path, or in the cells of a Parquet file."""

    kind: Literal["image"] = Field(description="says that it is one")
    column: str = Field(
        description="column with the path of a picture, or with its bytes (Parquet: binary, or a struct of bytes and "
        "path); empty = absent"
    )
    folder: str = Field(".", description="folder that the paths are relative to, itself relative to the mapping file")
    channels: Literal[1, 3] = Field(3, description="1 = grey, 3 = red, green, blue")
    height: int = Field(ge=1, le=4096, description="pixels")
    width: int = Field(ge=1, le=4096, description="pixels")
    resize: bool = Field(False, description="pictures of another size are resized instead of refused")
    background: Background = Field("white", description="colour below what is transparent; counted")


class WaveformTable(Modality):
    """Evenly sampled signals by path: NumPy files of shape (samples, leads) or (samples,), or WFDB records."""

    kind: Literal["waveform"] = Field(description="says that it is one")
    column: str = Field(
        description="column with the path of a .npy file, or of a WFDB record (with or without .hea); empty = absent"
    )
    folder: str = Field(".", description="folder that the paths are relative to, itself relative to the mapping file")
    leads: int | tuple[str, ...] = Field(
        1, description="number of leads, or their names; of a WFDB record the leads of these names, in this order"
    )
    rate: float | None = Field(
        None, gt=0, description="samples per second; a WFDB record of another rate is refused, of any if none is given"
    )
    max_length: int | None = Field(None, ge=1, description="most samples a record may hold")


class Task(Section):
    """Something to predict. An empty cell is an unlabelled record."""

    kind: TaskKind = Field(description="binary, multiclass, multilabel or regression")
    column: str | None = Field(None, description="column with the label")
    columns: tuple[str, ...] = Field((), description="multilabel and regression: one column a label or target")
    classes: tuple[str, ...] = Field(
        (),
        description="multiclass: the cells there are, in order; binary: (no, yes), either the cells themselves or "
        "names for cells 0/1, no/yes, false/true",
    )
    file: str | None = Field(None, description=_ABOUT_FILE)
    key: str | None = Field(None, description=_ABOUT_KEY)
    csv: Dialect | None = Field(None, description=_ABOUT_CSV)
    unknown_keys: Policy = Field("error", description=_ABOUT_UNKNOWN)
    rounding: Rounding = Field("error", description=f"of a regression target: {_ABOUT_ROUNDING}")
    unit: str = Field("", description="unit of a regression target")
    description: str = Field("", description="for people")

    @model_validator(mode="after")
    def _classes_differ(self) -> Task:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes names one twice: {', '.join(self.classes)}")
        if self.kind == "multiclass" and not self.classes:
            raise ValueError("a multiclass task lists its classes: the cells there are, in order")
        return self

    @model_validator(mode="after")
    def _columns_fit(self) -> Task:
        many = self.kind == "multilabel" or (self.kind == "regression" and self.column is None)
        if bool(self.columns) != many or (self.column is None) != many:
            wanted = "columns (one a label)" if self.kind == "multilabel" else "column (regression: or columns)"
            raise ValueError(f"a {self.kind} task has {wanted}")
        return self


AnyModality = Annotated[SeriesTable | VectorTable | TextTable | ImageTable | WaveformTable, Field(discriminator="kind")]
SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}


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
    kinds = {"series", "vector", "text", "image", "waveform"}
    # pydantic names the chosen kind as a step of the path; a modality may itself have such a name
    place = [str(part) for i, part in enumerate(first["loc"]) if not (i == 2 and part in kinds)]
    message = str(first["msg"]).removeprefix("Value error, ")
    given = "" if first["type"] in ("missing", "value_error", "extra_forbidden") else f" (given: {first['input']!r})"
    if first["type"] == "extra_forbidden":
        message = "there is no such entry"
    return f"{'.'.join(place) or 'the file'}: {message}{given}"
