"""WFDB records, the format of PhysioNet's signals: a text header (.hea) and binary samples (.dat).

Read by the format's own rules (physionet.org, "header(5)" and "signal(5)"): sampling rate, gains, baselines, units and
names come from the header, samples of signals that share a file are interleaved, one number in each format means that
there is no value. A header that does not follow them is refused, not guessed. What is stored in another way (records of
segments, several samples a frame, a skew, formats that are not listed here) is read by the package ``wfdb``.

Shape legend: L samples, C signals.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from data_shards.sources.readers.recordings.recording import Recording, SignalError, check_channels
from data_shards.sources.readers.recordings.wfdb_package import open_by_package
from data_shards.sources.readers.signals import Signal

DEFAULT_RATE, DEFAULT_GAIN = 250.0, 200.0  # of a header that does not say
_SIGNAL = re.compile(r"(?P<format>\d+)(?:x(?P<frame>\d+))?(?::(?P<skew>\d+))?(?:\+(?P<offset>\d+))?")
_GAIN = re.compile(r"(?P<gain>[-+.\deE]+)(?:\((?P<baseline>[-+]?\d+)\))?(?:/(?P<unit>\S+))?")


@dataclass(frozen=True)
class _Signal:
    """A line of the header."""

    file: str
    format: str
    offset: int
    gain: float
    calibrated: bool
    baseline: float
    unit: str
    checksum: int | None
    name: str


@dataclass(frozen=True)
class _Format:
    """How samples are stored: bits of one, and bytes -> that many whole numbers, of which ``gap`` means no value."""

    bits: int
    gap: int
    decode: Callable[[bytes, int], np.ndarray]


def _plain(dtype: str, zero: int = 0) -> Callable[[bytes, int], np.ndarray]:
    return lambda raw, count: np.frombuffer(raw, dtype, count).astype(np.int64) - zero


def _three_bytes(raw: bytes, count: int) -> np.ndarray:
    part = np.frombuffer(raw, np.uint8, 3 * count).reshape(count, 3).astype(np.int64)
    value = part[:, 0] | part[:, 1] << 8 | part[:, 2] << 16
    return value - ((value >> 23) << 24)


def _twelve_bits(raw: bytes, count: int) -> np.ndarray:
    """Two samples in three bytes: the low bytes are the first and the third, the second holds both high halves."""
    part = np.frombuffer(raw + b"\0\0", np.uint8, 3 * -(-count // 2)).reshape(-1, 3).astype(np.int64)
    pairs = np.stack([part[:, 0] | (part[:, 1] & 15) << 8, part[:, 2] | (part[:, 1] >> 4) << 8], axis=1)
    value = pairs.reshape(-1)[:count]
    return value - ((value >> 11) << 12)


_FORMATS = {
    "16": _Format(16, -(1 << 15), _plain("<i2")),
    "24": _Format(24, -(1 << 23), _three_bytes),
    "32": _Format(32, -(1 << 31), _plain("<i4")),
    "61": _Format(16, -(1 << 15), _plain(">i2")),
    "80": _Format(8, -(1 << 7), _plain("u1", 1 << 7)),
    "160": _Format(16, -(1 << 15), _plain("<u2", 1 << 15)),
    "212": _Format(12, -(1 << 11), _twelve_bits),
}


def header_file(path: Path) -> Path:
    """The header of a record that is named by its header, by its samples, or by neither suffix."""
    return path.with_name(path.name.removesuffix(".hea").removesuffix(".dat") + ".hea")


class _OtherKindError(SignalError):
    """A record of a kind that is not read here, and why."""


@dataclass(frozen=True)
class _Header:
    """What a header says; ``samples`` of each signal, None if it does not."""

    file: Path
    rate: float
    samples: int | None
    signals: list[_Signal]

    def files(self) -> Iterator[tuple[Path, _Format, int, int]]:
        """(file, format, offset, number of signals) of signals that share a file."""
        for (name, kind, offset), own in groupby(self.signals, lambda s: (s.file, s.format, s.offset)):
            yield self.file.parent / name, _FORMATS[kind], offset, len(list(own))


def read_wfdb(path: Path) -> Signal:
    """A whole record, by its name with or without .hea or .dat.

    Raises:
        ValueError: no such record, one of a kind that is not read, or one whose files do not fit together.
    """
    header = header_file(path)
    try:
        record = _open(header)
        values_LC = record.read(0, record.lengths[0], range(record.channels))
    except (SignalError, OSError) as error:
        raise ValueError(f"WFDB record {header}: {error}") from error
    return Signal(values_LC, record.rates[0], record.names, record.units, record.odd)


@contextmanager
def open_wfdb(path: Path) -> Iterator[Recording]:
    """A record, by its name with or without .hea or .dat; nothing of its samples is read yet.

    Raises:
        SignalError: as `read_wfdb`; names the header.
    """
    header = header_file(path)
    try:
        record = _open(header)
    except SignalError as error:
        raise SignalError(f"WFDB record {header}: {error}") from error
    yield record


def _open(file: Path) -> Recording:
    try:
        header = _read_header(file)
    except _OtherKindError as error:
        return open_by_package(file, str(error))
    lengths = {_length(header, *about) for about in header.files()}
    if len(lengths) > 1:
        raise SignalError("its files hold different numbers of samples")
    (length,), count, odd = lengths, len(header.signals), Counter[str]()
    odd["signals_without_gain"] = sum(not signal.calibrated for signal in header.signals)

    def read(first: int, end: int, columns: Sequence[int]) -> np.ndarray:
        digital_LC = np.concatenate([_samples(*about, first, end) for about in header.files()], axis=1)
        if (first, end) == (0, length):
            odd["checksums_differ"] = _wrong_sums(header.signals, digital_LC)
        return _physical([header.signals[column] for column in columns], digital_LC[:, list(columns)])

    names = tuple(signal.name for signal in header.signals)
    units = tuple(signal.unit for signal in header.signals)
    return Recording(count, read, (header.rate,) * count, (length,) * count, names, units, gaps=True, odd=odd)


def _read_header(file: Path) -> _Header:
    try:
        lines = [line for line in file.read_text("utf-8").splitlines() if line.strip() and line[0] != "#"]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SignalError(f"its header cannot be read: {reason}") from error
    count, rate, samples = _record_line(lines)
    check_channels(count)
    signals = [_signal_line(line) for line in lines[1 : 1 + count]]
    if len(signals) != count:
        raise SignalError(f"it announces {count} signals and describes {len(signals)}")
    return _Header(file, rate, samples, signals)


def _wrong_sums(signals: list[_Signal], digital_LC: np.ndarray) -> int:
    return sum(
        (int(digital_LC[:, number].sum()) - signal.checksum) % 65536 != 0
        for number, signal in enumerate(signals)
        if signal.checksum is not None
    )


def _physical(signals: list[_Signal], digital_LC: np.ndarray) -> np.ndarray:
    """float64 [L, C] in the units of the header; NaN where there is no value."""
    gap_C = np.array([_FORMATS[signal.format].gap for signal in signals])
    baseline_C, gain_C = np.array([(s.baseline, s.gain) for s in signals]).T
    return np.where(digital_LC == gap_C, np.nan, (digital_LC - baseline_C) / gain_C)


def _record_line(lines: list[str]) -> tuple[int, float, int | None]:
    """(signals, samples per second, samples or None) of the first line."""
    words = lines[0].split() if lines else []
    if len(words) < 2 or not words[1].isdigit() or int(words[1]) < 1:
        raise SignalError("its first line does not give a name and a number of signals")
    if "/" in words[0]:
        raise _OtherKindError("it consists of segments")
    try:
        rate = float(words[2].partition("/")[0].partition("(")[0]) if len(words) > 2 else DEFAULT_RATE
        samples = int(words[3]) if len(words) > 3 else 0
    except ValueError:
        raise SignalError(f"its first line, {lines[0]!r}, does not give a rate and a number of samples") from None
    if not (0 < rate < float("inf")) or samples < 0:
        raise SignalError(f"a rate of {rate:g} and {samples} samples are impossible")
    return int(words[1]), rate, samples or None


def _signal_line(line: str) -> _Signal:
    """Fields: file, format, gain(baseline)/unit, resolution, zero, first sample, sum of samples, block, description."""
    words = line.split(maxsplit=8)
    form = _SIGNAL.fullmatch(words[1]) if len(words) > 1 else None
    gain = _GAIN.fullmatch(words[2]) if len(words) > 2 else None
    if form is None or (len(words) > 2 and gain is None):
        raise SignalError(f"its line {line!r} does not describe a signal")
    if form["format"] not in _FORMATS:
        raise _OtherKindError(f"its samples are in format {form['format']}")
    if int(form["frame"] or 1) != 1 or int(form["skew"] or 0) != 0:
        raise _OtherKindError(f"it has several samples a frame or a skew ({words[1]})")
    if Path(words[0]).name != words[0] or words[0] in ("~", "-", "..", "."):
        raise SignalError(f"its samples are said to be in {words[0]!r}, which is no name of a file beside it")
    number = float(gain["gain"]) if gain else 0.0
    zero = int(words[4]) if len(words) > 4 else 0
    return _Signal(
        file=words[0],
        format=form["format"],
        offset=int(form["offset"] or 0),
        gain=number or DEFAULT_GAIN,
        calibrated=bool(number),
        baseline=float(gain["baseline"]) if gain and gain["baseline"] else float(zero),
        unit=(gain["unit"] if gain else None) or "mV",
        checksum=int(words[6]) if len(words) > 6 else None,
        name=words[8].strip() if len(words) > 8 else "",
    )


def _length(header: _Header, file: Path, form: _Format, offset: int, signals: int) -> int:
    """Samples of each signal in one file, which has to hold what the header says."""
    try:
        size = max(0, file.stat().st_size - offset)
    except OSError as error:
        raise SignalError(f"its samples cannot be read: {error.strerror or error}") from error
    there = 8 * size // form.bits
    wanted = there // signals * signals if header.samples is None else header.samples * signals
    # A last odd sample of 12 bits takes two bytes, and writers may fill up to three
    spare = (8 * size - form.bits * wanted) // 8
    if spare < 0 or spare > (1 if form.bits == 12 else 0):
        raise SignalError(
            f"{file.name} holds {there / signals:g} samples of {signals} signals in this format, the header says "
            f"{header.samples if header.samples is not None else 'nothing, and that is no whole number'}"
        )
    return wanted // signals


def _samples(file: Path, form: _Format, offset: int, signals: int, first: int, end: int) -> np.ndarray:
    """int64 [end - first, signals] of one file."""
    begin = first * signals
    extra = begin % 2 if form.bits == 12 else 0  # pairs of samples share three bytes
    count = (end - first) * signals + extra
    with file.open("rb") as stream:
        stream.seek(offset + (begin - extra) * form.bits // 8)
        raw = stream.read(-(-count * form.bits // 8))
    return form.decode(raw, count)[extra:].reshape(-1, signals)
