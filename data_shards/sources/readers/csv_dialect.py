"""How a CSV file is written: what its mapping says, and what follows from that."""

from __future__ import annotations

import codecs
import csv
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# Words that stand for "no value" where a number, a date or a label is wanted, unless the mapping names others.
EMPTY_WORDS = ("NA", "#N/A", "N/A", "n/a", "<NA>", "NaN", "nan", "NULL", "Null", "null", "None")


class Dialect(BaseModel):
    """How CSV files are written. Nothing is guessed from their content."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    separator: str | None = Field(
        None, description="one character between cells, or the word tab; default: a tab in .tsv files, else a comma"
    )
    encoding: str = Field(
        "utf-8", description="e.g. latin-1, cp1252, utf-16; a byte order mark of UTF-8 is passed over"
    )
    quote: str | None = Field('"', description="character around cells; null: quotes are plain characters")
    escape: str | None = Field(
        None,
        description='character, e.g. "\\\\", that is taken away wherever it stands, and makes the next one an ordinary '
        "one, as a quote in a quoted cell; default: none, quotes are doubled",
    )
    decimal: str = Field(".", description="decimal mark of numbers: . or ,")
    header: bool | tuple[str, ...] = Field(
        True, description="false: no header, columns are called 1, 2, 3, ...; or a list of names for them"
    )
    null: tuple[str, ...] | None = Field(
        None,
        description="words for an empty cell, in every column except where the mapping lists the word itself (as a "
        f"class, a channel, ...); an empty cell is always empty. Default: {', '.join(EMPTY_WORDS)}, for numbers, dates "
        "and labels only. Holds for Parquet and JSON lines as well",
    )
    date: str | None = Field(
        None,
        description='how dates are written, in the terms of Python, e.g. "%d.%m.%Y %H:%M", %f for fractions, %z for a '
        "zone; default ISO 8601, 2031-05-30 14:05[:00][Z]",
    )
    lines: int | None = Field(
        None,
        ge=1,
        description="most lines that a quoted cell may run over; default: any number, but lines that look like rows "
        "are taken for the work of a stray quote, and refused",
    )

    @model_validator(mode="before")
    @classmethod
    def _yaml_null(cls, given: Any) -> Any:
        """YAML reads the key `null` as no key at all, and a word `null` in its list as no word."""
        if isinstance(given, dict) and None in given:
            given = {"null" if key is None else key: value for key, value in given.items()}
        if isinstance(given, dict) and isinstance(given.get("null"), list | tuple):
            given = {**given, "null": tuple("null" if word is None else word for word in given["null"])}
        return given

    @field_validator("separator", "quote", "escape")
    @classmethod
    def _one_character(cls, given: str | None) -> str | None:
        given = "\t" if given in ("tab", "\\t") else given
        if given is not None and (len(given) != 1 or given in "\r\n"):
            raise ValueError(f"{given!r} is not one character")
        return given

    @field_validator("decimal")
    @classmethod
    def _a_mark(cls, given: str) -> str:
        if given not in (".", ","):
            raise ValueError(f"the decimal mark is . or , and not {given!r}")
        return given

    @field_validator("date")
    @classmethod
    def _zones_that_are_read(cls, given: str | None) -> str | None:
        if given is not None and "%Z" in given:
            raise ValueError(
                "names of zones (%Z) say nothing that could be relied on; dates need a distance (%z) or none"
            )
        return given

    @field_validator("encoding")
    @classmethod
    def _known(cls, given: str) -> str:
        try:
            codecs.lookup(given)
        except LookupError as error:
            raise ValueError(f"there is no encoding {given!r}; utf-8, latin-1, cp1252 and utf-16 are common") from error
        return given

    @model_validator(mode="after")
    def _apart(self) -> Dialect:
        marks = [mark for mark in (self.separator, self.quote, self.escape) if mark is not None]
        if len(set(marks)) < len(marks):
            raise ValueError("separator, quote and escape must be different characters")
        if self.escape is not None and self.quote is None:
            raise ValueError("an escape character stands before quotes, and there are none (quote: null)")
        return self

    def cut_by(self, name: str) -> str:
        """The separator in a file of that name."""
        return self.separator or ("\t" if ".tsv" in name else ",")

    def reader(self, name: str) -> dict[str, Any]:
        """Arguments of `csv.reader`."""
        quoting = csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE
        marks = {"quotechar": self.quote or None, "escapechar": self.escape, "doublequote": True}
        return {"delimiter": self.cut_by(name), "strict": True, "quoting": quoting, **marks}

    def plain(self, text: str) -> bool:
        """Whether a piece holds no quote and no escape character: then every separator and line end is one."""
        return not any(mark is not None and mark in text for mark in (self.quote, self.escape))

    def tidy(self, name: str) -> re.Pattern[str] | None:
        """What a piece matches whose every quote opens, closes or doubles within a cell of one line; None: nothing."""
        if not self.quote or self.escape:
            return None
        cut, quote = re.escape(self.cut_by(name)), re.escape(self.quote)
        cell = rf"(?:{quote}(?:[^{quote}\r\n]++|{quote}{quote})*+{quote}|[^{quote}{cut}\r\n]*+)"
        return re.compile(rf"(?:{cell}(?:{cut}|\r\n?|\n))*+{cell}")
