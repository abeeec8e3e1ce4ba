"""The sections of a mapping file that say where a modality is: one class a kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_shards.sources.readers.csv_dialect import Dialect
from data_shards.sources.readers.picture_values import Background

Policy = Literal["error", "skip"]
Rounding = Literal["error", "allow"]
DateUnit = Literal["nanoseconds", "microseconds", "milliseconds", "seconds", "minutes", "hours", "days"]
Frames = Annotated[float, Field(gt=0)] | Literal["key"]
SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}
ABOUT_FILE = "file with the rows, or a pattern such as events/*.parquet; default: the file of the records"
ABOUT_KEY = "column that says which record a row belongs to; default: the one of the records"
ABOUT_CSV = "how this file is written, where that differs from the mapping's csv"
ABOUT_UNKNOWN = "rows of records that are not in the records' file: an error, or left out (counted)"
ABOUT_ROUNDING = (
    "numbers of a finer resolution than float32 has at their size (whole numbers above 16,777,216, say): an error, "
    "or rounded (counted)"
)
ABOUT_REPLACE = (
    'cell -> number that it stands for, e.g. {"> 89": 90}, or null for an empty cell; the whole cell must be equal, '
    "before anything else is made of it; counted by column"
)
_OF_TIMES = ("time_unit", "origin", "date_unit", "horizon", "outside", "max_objects")


class Section(BaseModel):
    """A part of the mapping file."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class Times(Section):
    """A column with times, and how they become times since the record's time 0."""

    time: str | None = Field(
        None, description="column with the time: numbers in time_unit, durations, or, with an origin, dates"
    )
    time_unit: str = Field(
        "hours", description="unit of the times; for dates and durations: seconds, minutes, hours or days"
    )
    origin: str | None = Field(
        None, description="column of the records' file with the date that is time 0; the time column then holds dates"
    )
    date_unit: DateUnit | None = Field(
        None, description="dates, those of the origin too, are numbers: so many of these since 1970 (Unix times)"
    )
    rounding: Rounding = Field("error", description=ABOUT_ROUNDING)

    @property
    def timed(self) -> bool:
        """Whether what it holds has times."""
        return self.time is not None

    @model_validator(mode="after")
    def _dates(self) -> Times:
        if not self.timed:
            said = sorted(self.model_fields_set & set(_OF_TIMES))
            if said:
                raise ValueError(f"{said[0]} says something of times, and there is no time: name its column")
        if self.date_unit is not None and self.origin is None:
            raise ValueError("date_unit is for dates, which need their time 0: give origin, too")
        if self.origin is not None and self.time_unit not in SECONDS:
            raise ValueError(f"time_unit {self.time_unit!r} of dates must be one of {', '.join(SECONDS)}")
        return self


class Modality(Times):
    """What all kinds share. With a time a record holds any number of objects, each at its time."""

    file: str | None = Field(None, description=ABOUT_FILE)
    key: str | None = Field(None, description=ABOUT_KEY)
    csv: Dialect | None = Field(None, description=ABOUT_CSV)
    unknown_keys: Policy = Field("error", description=ABOUT_UNKNOWN)
    unit: str = Field("", description="unit of the values")
    description: str = Field("", description="for people")
    horizon: float | None = Field(
        None,
        gt=0,
        description="length of the observation window, in time_unit; default: the longest time seen, which the report "
        "names; with labels at moments the window ends at the moment, and its length must be given",
    )
    outside: Policy = Field(
        "error",
        description="what lies before 0 or after the horizon: an error, or left out (counted); with labels at moments "
        "nothing does",
    )


class SeriesTable(Modality):
    """Irregular series: in long form one row an observation, in wide form (``columns``) one row a time."""

    kind: Literal["series"] = Field(description="says that it is one")
    time: str = Field(description=str(Times.model_fields["time"].description))
    channel: str | None = Field(None, description="long form: column with the name of the channel")
    value: str | None = Field(None, description="long form: column with the value; empty = not observed")
    channels: tuple[str, ...] = Field((), description="long form: the channels that belong to this modality")
    other_channels: Policy = Field("error", description="long form: channels that no modality of this file lists")
    columns: tuple[str, ...] = Field((), description="wide form: one column a channel; empty = not observed")
    units: tuple[str, ...] = Field((), description="unit of each channel")
    max_length: int | None = Field(None, description="most observations a record may hold")
    replace: dict[str, float | None] = Field(default_factory=dict, description=ABOUT_REPLACE)

    @model_validator(mode="after")
    def _one_form(self) -> SeriesTable:
        long = (self.channel is not None, self.value is not None, bool(self.channels))
        if bool(self.columns) == any(long) or any(long) != all(long):
            raise ValueError("a series has either channel, value and channels (long form) or columns (wide form)")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Channel names in order."""
        return self.columns or self.channels


class ObjectTable(Modality):
    """A kind of which a record holds one object or, with a time, any number."""

    max_objects: int | None = Field(
        None, ge=1, description="with a time: the newest so many of a record are kept, the others are counted"
    )


class VectorTable(ObjectTable):
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
    replace: dict[str, float | None] = Field(default_factory=dict, description=ABOUT_REPLACE)

    @model_validator(mode="after")
    def _one_form(self) -> VectorTable:
        if bool(self.columns) == (self.column is not None) or (self.column is None) != (self.size is None):
            raise ValueError("a vector has either columns, or column and size")
        if self.replace and not self.columns:
            raise ValueError("replace is for columns with one number a cell")
        return self


class TextTable(ObjectTable):
    """Texts; several rows of one record are joined by line ends, in the order of the file, or, with a time, apart."""

    kind: Literal["text"] = Field(description="says that it is one")
    column: str = Field(description="column with the text; empty = absent")
    max_length: int = Field(65_536, ge=1, description="most bytes (UTF-8) a record, or with a time each text, may hold")
    too_long: Literal["error", "cut"] = Field("error", description="longer texts: an error, or cut (counted)")


class FileTable(ObjectTable):
    """A kind whose objects lie in files of their own, of which a stretch may be taken."""

    column: str = Field(description="column with the path of the file, or with its bytes")
    folder: str = Field(".", description="folder that the paths are relative to, itself relative to the mapping file")
    start: str | None = Field(
        None, description="of recordings and films: column with the second of the file that is its first; empty = 0"
    )
    end: str | None = Field(
        None, description="column with the second of the file that what is taken ends before; empty = the file's end"
    )


class ImageTable(FileTable):
    """Pictures by path, or in the cells of a Parquet file; with ``frames`` those of films, each at its time."""

    kind: Literal["image"] = Field(description="says that it is one")
    column: str = Field(
        description="column with the path of a picture or film, or with its bytes (Parquet: binary, or a struct of "
        "bytes and path); empty = absent"
    )
    channels: Literal[1, 3] = Field(3, description="1 = grey, 3 = red, green, blue")
    height: int = Field(ge=1, le=4096, description="pixels")
    width: int = Field(ge=1, le=4096, description="pixels")
    resize: bool = Field(False, description="pictures of another size are resized instead of refused")
    background: Background = Field("white", description="colour below what is transparent; counted")
    frames: Frames | None = Field(
        None,
        description="the files are films, and these of their pictures are taken, as a timed modality: the one that is "
        "seen every so many seconds, from the start on, or key: its key frames. Times are those since the start of "
        "the film, or of the stretch of it, plus that of the column time if there is one; time_unit says in what",
    )

    @property
    def timed(self) -> bool:
        """Whether what it holds has times: a film's pictures always do."""
        return self.time is not None or self.frames is not None

    @model_validator(mode="after")
    def _films(self) -> ImageTable:
        if self.frames is None:
            if self.start is not None or self.end is not None:
                raise ValueError("start and end are for films: say with frames which of their pictures are taken")
            return self
        if self.time_unit not in SECONDS:
            raise ValueError(f"time_unit {self.time_unit!r} of a film must be one of {', '.join(SECONDS)}")
        if self.horizon is None:
            raise ValueError("a film's pictures need horizon, the length of the observation window, in time_unit")
        return self


class WaveformTable(FileTable):
    """Evenly sampled signals by path: sounds, the sound of films, WFDB, EDF, HDF5 and NumPy files.

    Sounds (.wav, .flac, .ogg, .mp3, ...) are numbers from -1 to 1; WFDB and EDF signals have their physical units; a
    film's sound begins where the film begins. What kind a file is, is seen from its first bytes.
    """

    kind: Literal["waveform"] = Field(description="says that it is one")
    column: str = Field(
        description="column with the path of the file (a WFDB record with or without .hea), or with the bytes of a "
        "sound, film, HDF5 or NumPy file (Parquet: binary, or a struct of bytes and path); empty = absent"
    )
    array: str | None = Field(None, description="of a .npz file the name of the array, of an HDF5 file the dataset")
    leads: int | tuple[str, ...] = Field(
        1,
        description="number of leads, or their names; of a file with names (WFDB, EDF) the channels of these names, in "
        "this order; default: as many as channels lists, else 1",
    )
    channels: Literal["mix"] | tuple[int, ...] | tuple[str, ...] | None = Field(
        None,
        description="which of the file's channels: their numbers from 0 or their names, in the order of leads, or mix: "
        "the mean of all; without it a file has as many as there are leads, or those of their names",
    )
    rate: float | None = Field(
        None, gt=0, description="samples per second; without it each file's own is taken as it is, and counted"
    )
    resample: bool = Field(
        False,
        description="files of another rate are resampled (by a polyphase filter), and counted, instead of refused; a "
        "file that says no rate (NumPy, HDF5) is taken as it is",
    )
    max_length: int | None = Field(
        None, ge=1, description="most samples a record, or with a time each recording, may hold"
    )

    @model_validator(mode="after")
    def _channels_fit(self) -> WaveformTable:
        if self.resample and self.rate is None:
            raise ValueError("resample needs the rate that files are resampled to: give rate")
        if isinstance(self.channels, tuple):
            twice = next((own for n, own in enumerate(self.channels) if own in self.channels[:n]), None)
            if twice is not None:
                raise ValueError(f"channels names {twice!r} twice")
            if any(isinstance(own, int) and own < 0 for own in self.channels):
                raise ValueError(f"channels {list(self.channels)} must count from 0")
        if self.channels is not None and "leads" in self.model_fields_set and self.lead_count != self._chosen:
            what = "mix makes 1" if self.channels == "mix" else f"channels lists {self._chosen}"
            raise ValueError(f"there are {self.lead_count} leads, and {what}")
        return self

    @property
    def _chosen(self) -> int:
        """How many ``channels`` gives."""
        return len(self.channels) if isinstance(self.channels, tuple) else 1

    @property
    def lead_names(self) -> tuple[str, ...]:
        """Names of the leads, none if only their number is given."""
        return self.leads if isinstance(self.leads, tuple) else ()

    @property
    def lead_count(self) -> int:
        """How many leads a record has."""
        if isinstance(self.leads, tuple):
            return len(self.leads)
        return self.leads if "leads" in self.model_fields_set or self.channels is None else self._chosen


class CodesTable(Modality):
    """Symbols: in long form one row a code, or plain categories, one ``column=value`` for each of some columns."""

    kind: Literal["codes"] = Field(description="says that it is one")
    column: str | None = Field(None, description="long form: column with the code; rows without one are counted")
    value: str | None = Field(None, description="long form: column with a number that comes with the code, or nothing")
    columns: tuple[str, ...] = Field(
        (),
        description="plain categories, in one row a record: sex with the cell f is the code sex=f; an empty cell gives "
        "no code, and is counted",
    )
    vocabulary: tuple[str, ...] | str | None = Field(
        None,
        description="all codes there are, in order; or a file with one a line (.txt); or the place of a packed data "
        "set whose modality of the same name has them; default: learned from the training part when packing",
    )
    max_codes: int = Field(1_000_000, ge=1, le=1_000_000, description="a learned vocabulary keeps the most frequent")
    min_count: int = Field(1, ge=1, description="codes that are rarer in the training part share one place, counted")
    max_length: int | None = Field(None, ge=1, description="most codes a record may hold")
    replace: dict[str, float | None] = Field(default_factory=dict, description=ABOUT_REPLACE)

    @model_validator(mode="after")
    def _one_form(self) -> CodesTable:
        if bool(self.columns) == (self.column is not None):
            raise ValueError("codes have either column (long form) or columns (plain categories)")
        if self.columns and (self.value is not None or self.time is not None):
            raise ValueError("plain categories (columns) have no value and no time; those are for the long form")
        if self.replace and self.value is None:
            raise ValueError("replace is for the numbers of a value column")
        given = {"max_codes", "min_count"} & self.model_fields_set
        if self.vocabulary is not None and given:
            raise ValueError(f"{min(given)} is for a learned vocabulary, and this one is given")
        if isinstance(self.vocabulary, tuple) and len(set(self.vocabulary)) < len(self.vocabulary):
            twice = next(code for n, code in enumerate(self.vocabulary) if code in self.vocabulary[:n])
            raise ValueError(f"vocabulary names {twice!r} twice")
        return self


AnyModality = Annotated[
    SeriesTable | VectorTable | TextTable | ImageTable | WaveformTable | CodesTable, Field(discriminator="kind")
]
