"""CSV files as batches of cells (text), with the dialect checked: no quote that never closes, no row of another width.

Pieces in which every quote has its place, cell by cell and line by line, are taken apart by Arrow; the others by
`csv.reader` in strict mode, which is ten times slower and which Arrow's result is tested against. Arrow by itself takes
any quoting.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from data_shards.sources.readers.csv_dialect import Dialect

BLOCK_BYTES = 8 << 20
_BATCH_ROWS = 1 << 16
_LONGEST_CELL = 1 << 28  # characters; `csv` stops at 131,072 by default


def csv_batches(
    file: Path, wanted: Sequence[str], dialect: Dialect, key: str | None = None
) -> Iterator[pa.RecordBatch]:
    """The wanted columns of a file as text, row for row.

    Args:
        wanted: names of columns, or their numbers from 1 where the file has no header. key: the column that names the
            record: lines of a quoted cell are taken for rows if their keys look like that of the cell's own row.

    Raises:
        ValueError: not of this encoding, a quote that does not close or closes within a cell, a row that is wider or
            narrower than the header, a column that is not there or there twice. Names file and line.
    """
    csv.field_size_limit(_LONGEST_CELL)
    try:
        # Arrow finds the compression (gz, bz2, zst, ...) by the file's name
        with pa.input_stream(str(file)) as stream:
            yield from _Table(file, wanted, dialect, _Blocks(file, stream, dialect.encoding), key).batches()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


class _Blocks:
    """Text of a file in pieces that end with a line.

    Attributes:
        line: lines that were given out so far.
    """

    def __init__(self, file: Path, stream: pa.NativeFile, encoding: str) -> None:
        self.file, self.stream, self.encoding = file, stream, encoding
        utf8 = codecs.lookup(encoding).name == "utf-8"
        self.decoder = codecs.getincrementaldecoder("utf-8-sig" if utf8 else encoding)()
        self.line, self._rest, self._over = 0, "", False

    def take(self) -> str:
        """The next piece, "" at the end."""
        while not self._over:
            raw = self.stream.read(BLOCK_BYTES)
            self._over = not raw
            self._rest += self._decode(raw)
            # A \r at the very end may be half of a \r\n
            end = max(self._rest.rfind("\n"), self._rest.rfind("\r", 0, len(self._rest) - 1)) + 1
            if end and not self._over:
                block, self._rest = self._rest[:end], self._rest[end:]
                return self._counted(block)
        block, self._rest = self._rest, ""
        return self._counted(block)

    def _counted(self, block: str) -> str:
        self.line += count_lines(block)
        return block

    def _decode(self, raw: bytes) -> str:
        try:
            text = self.decoder.decode(raw, final=self._over)
        except UnicodeDecodeError as error:
            line = self.line + count_lines(self._rest) + error.object[: error.start].count(b"\n") + 1
            raise ValueError(
                f"{self.file}, line {line}: byte 0x{error.object[error.start]:02x} is not {self.encoding}; say how the "
                "file is written, e.g. csv: {encoding: latin-1}"
            ) from error
        if "\0" in text:
            line = self.line + count_lines(self._rest) + count_lines(text[: text.index("\0")]) + 1
            raise ValueError(
                f"{self.file}, line {line} holds a NUL character; is this text? If it is UTF-16: csv: "
                "{encoding: utf-16}"
            )
        return text


def count_lines(text: str) -> int:
    """Line ends (\\n, \\r\\n or \\r) of a text."""
    return text.count("\n") + (text.count("\r") - text.count("\r\n") if "\r" in text else 0)


class _Table:
    """One file that is being read."""

    def __init__(self, file: Path, wanted: Sequence[str], dialect: Dialect, blocks: _Blocks, key: str | None) -> None:
        self.key, self.file, self.wanted, self.dialect, self.blocks = key, file, list(wanted), dialect, blocks
        self.separator = dialect.cut_by(file.name)
        self.format, self.tidy = dialect.reader(file.name), dialect.tidy(file.name)
        self.names: list[str] = []

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows below the header."""
        while block := self.blocks.take():
            start = self.blocks.line - count_lines(block)
            if not self.names:
                first, block, start = self.header(block)
                yield from [self._batch([first])] if first and self.dialect.header is not True else []
            if block and (self.dialect.plain(block) or (self.tidy and self.tidy.fullmatch(block))):
                yield from self._fast(block, start)
            elif block:
                yield from self._slow(block, start)
        if not self.names:
            raise ValueError(f"{self.file} is empty: it has no header line")

    def header(self, block: str) -> tuple[list[str], str, int]:
        """Learn the names of the columns; returns the first row, what follows it, and the lines above that."""
        rows = _Rows(block, self.blocks, self.blocks.line - count_lines(block), self.format, self.file)
        first, _ = next(iter(rows), ([], 0))
        if not first:
            return [], "", 0
        header = self.dialect.header
        if header is True:
            self.names = first
        else:
            self.names = list(header) if header else [str(n + 1) for n in range(len(first))]
            if len(self.names) != len(first):
                raise ValueError(
                    f"{self.file}: csv.header gives {len(self.names)} names, and line 1 has {len(first)} cells "
                    f"(separator {self.separator!r})"
                )
        self._check_names()
        return first, rows.rest(), rows.line

    def _check_names(self) -> None:
        """Every wanted column is there once."""
        for name in self.wanted:
            count = self.names.count(name)
            if count > 1:
                raise ValueError(
                    f"{self.file} has {count} columns called {name!r}; give them different names, e.g. with csv: "
                    "{header: [...]}"
                )
            if not count:
                raise ValueError(missing_column(self.file, name, self.names, self.separator))
        self.places = [self.names.index(name) for name in self.wanted]

    def _fast(self, block: str, start: int) -> Iterator[pa.RecordBatch]:
        """Rows of a block whose quotes are tidy; what Arrow refuses is read again for the sentence."""
        places = [str(n) for n in range(len(self.names))]
        wanted = [str(place) for place in self.places]
        data = block.encode("utf-8", "surrogatepass")
        try:
            table = pa.csv.read_csv(
                pa.BufferReader(data),
                pa.csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=places),
                pa.csv.ParseOptions(delimiter=self.separator, quote_char=self.dialect.quote or False),
                pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(wanted, pa.string()),
                    include_columns=wanted,
                    null_values=[],
                    strings_can_be_null=False,
                ),
            )
        except (pa.ArrowInvalid, TypeError):  # TypeError: a separator that is not ASCII
            yield from self._slow(block, start)
            return
        yield from table.rename_columns(self.wanted).to_batches()

    def _slow(self, block: str, start: int) -> Iterator[pa.RecordBatch]:
        """Rows of a block, and of what a quoted cell at its end needs of the next ones."""
        held: list[list[str]] = []
        for row, line in _Rows(block, self.blocks, start, self.format, self.file):
            if len(row) == 1 and len(self.names) > 1 and not row[0].strip():
                continue  # a line of blanks
            if len(row) != len(self.names):
                raise ValueError(
                    f"{self.file}, line {line}: {len(row)} cells, and the header has {len(self.names)} (separator "
                    f"{self.separator!r}); a cell that holds the separator must be quoted"
                )
            if any("\n" in cell or "\r" in cell for cell in row):
                self._check_lines(row, line)
            held.append(row)
            if len(held) == _BATCH_ROWS:
                yield self._batch(held)
                held = []
        if held:
            yield self._batch(held)

    def _batch(self, rows: list[list[str]]) -> pa.RecordBatch:
        columns = [pa.array([row[place] for row in rows], pa.string()) for place in self.places]
        return pa.record_batch(columns, names=self.wanted)

    def _check_lines(self, row: list[str], line: int) -> None:
        """Refuse cells that run over more lines than allowed, or over lines that look like rows of this table."""
        for place, cell in enumerate(row):
            parts = cell.replace("\r\n", "\n").replace("\r", "\n").split("\n")
            if self.dialect.lines is not None:
                if len(parts) > self.dialect.lines:
                    raise ValueError(
                        f"{self.file}, line {line}: the cell of column {self.names[place]!r} runs over {len(parts)} "
                        f"lines, csv.lines allows {self.dialect.lines}; is there a quote that never closes?"
                    )
            elif len(parts) > 1 and self._swallowed(parts[1:], place, row):
                raise ValueError(
                    f"{self.file}, line {line}: the quoted cell of column {self.names[place]!r} runs over {len(parts)} "
                    f"lines, and those look like rows of this table, e.g. {parts[1][:60]!r}: a stray quote has "
                    f"swallowed them; mend the quote, or say that it is right with csv: {{lines: {len(parts)}}} or more"
                )

    def _swallowed(self, lines: list[str], place: int, row: list[str]) -> bool:
        """Whether the further lines of a cell could all be rows; the last is one up to the cell's own column."""
        widths = [len(self.names)] * (len(lines) - 1) + [place + 1]
        cells = [line.split(self.separator) for line in lines]
        if [len(own) for own in cells] != widths or max(widths) == 1:
            return False
        if self.key not in self.names:
            # Texts have blanks, and one behind each comma
            return all(own[0] and not any(" " in own[0] or cell[:1] == " " for cell in own) for own in cells)
        at = self.names.index(self.key)
        keys = [own[at] for own in cells if at < len(own)]
        return bool(keys) and all(_shape(key) == _shape(row[at]) for key in keys)


def _shape(key: str) -> str:
    """What keys of one kind have in common: s12 and s7 are a0, 2031-05-30 is 0-0-0."""
    return re.sub(r"[A-Za-z]+", "a", re.sub(r"\d+", "0", key.strip()))


class _Rows:
    """Rows of one block by `csv.reader`; goes on into the next blocks only while a row is not complete.

    Attributes:
        line: lines read so far, in the file.
    """

    def __init__(self, block: str, blocks: _Blocks, start: int, form: dict[str, object], file: Path) -> None:
        self.blocks, self.line, self.file, self.form = blocks, start, file, form
        self._lines = io.StringIO(block, newline="")
        self._within = False  # a row has begun

    def __iter__(self) -> Iterator[tuple[list[str], int]]:
        """(cells, line where the row begins); lines without any character are passed over."""
        reader = csv.reader(self._feed(), **self.form)  # type: ignore[arg-type]
        while True:
            self._within, begin = False, self.line + 1
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise ValueError(self._sentence(str(error), begin)) from error
            if row is None:
                return
            if row:
                yield row, begin

    def _feed(self) -> Iterator[str]:
        while True:
            line = self._lines.readline()
            if not line and self._within and (block := self.blocks.take()):
                self._lines = io.StringIO(block, newline="")
                continue
            if not line:
                return
            self._within, self.line = True, self.line + 1
            yield line

    def rest(self) -> str:
        """What is left of the block."""
        return self._lines.read()

    def _sentence(self, problem: str, begin: int) -> str:
        if "unexpected end" in problem:
            return (
                f"{self.file}, line {begin}: a quote opens there and never closes, so that the rest of the file, to "
                f"line {self.line}, would be one cell; close it, double it, or say csv: {{quote: null}} if quotes mean "
                "nothing in this file"
            )
        if "field larger" in problem:
            return f"{self.file}, line {begin}: a cell is longer than {_LONGEST_CELL:,} characters; is a quote open?"
        return (
            f"{self.file}, line {begin} (to {self.line}): a quoted cell goes on after its closing quote ({problem}); "
            'quotes inside of a cell are doubled, or escaped (then say csv: {escape: "\\\\"}), and a quote that '
            "opens must close"
        )


def missing_column(file: Path, name: str, there: Sequence[str], separator: str | None = None) -> str:
    """The sentence for a column that is not there."""
    how = f" (read with separator {separator!r})" if separator else ""
    other = [mark for mark in ";\t|," if len(there) == 1 and mark != separator and mark in there[0]]
    hint = f'; it looks as if the separator were {other[0]!r}: csv: {{separator: "{other[0]}"}}' if other else ""
    return f"{file} has no column {name!r}; it has {', '.join(map(repr, there))}{how}{hint}"


def csv_names(file: Path, dialect: Dialect) -> list[str]:
    """Names of all columns of a file. Raises ValueError as `csv_batches`."""
    csv.field_size_limit(_LONGEST_CELL)
    try:
        with pa.input_stream(str(file)) as stream:
            blocks = _Blocks(file, stream, dialect.encoding)
            table = _Table(file, [], dialect, blocks, None)
            while not table.names and (block := blocks.take()):
                table.header(block)
            return table.names
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
