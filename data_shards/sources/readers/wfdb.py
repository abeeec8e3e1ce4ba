"""WFDB records, the format of PhysioNet's signals: a text header (.hea) and binary samples (.dat).

Read by the format's own rules (physionet.org, "header(5)" and "signal(5)"): sampling rate, gains, baselines, units and
names come from the header, samples of signals that share a file are interleaved, one number in each format means that
there is no value. Records of several segments, with several samples a frame or with a skew are refused.

Shape legend: L samples, C signals.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np

DEFAULT_RATE, DEFAULT_GAIN = 250.0, 200.0  # of a header that does not say
_SIGNAL = re.compile(r"(?P<format>\d+)(?:x(?P<frame>\d+))?(?::(?P<skew>\d+))?(?:\+(?P<offset>\d+))?")
_GAIN = re.compile(r"(?P<gain>[-+.\deE]+)(?:\((?P<baseline>[-+]?\d+)\))?(?:/(?P<unit>\S+))?")


@dataclass(frozen=True)
class Recording:
    """One record.

    Attributes:
        values_LC: float64, in the units of the header; NaN where there is no value.
        rate: samples per second. names: of the signals. units: of the signals.
        odd: what is to be counted: sums of samples that differ from the header's, signals without a gain.
    """

    values_LC: np.ndarray
    rate: float
    names: tuple[str, ...]
    units: tuple[str, ...]
    odd: Counter[str] = field(default_factory=Counter)


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


def read_wfdb(path: Path) -> Recording:
    """A record, by its name with or without .hea or .dat.

    Raises:
        ValueError: no such record, one of a kind that is not read, or one whose files do not fit together.
    """
    header = header_file(path)
    try:
        lines = [line for line in header.read_text("utf-8").splitlines() if line.strip() and line[0] != "#"]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{header} cannot be read: {error}") from error
    try:
        count, rate, samples = _record_line(lines)
        signals = [_signal_line(line) for line in lines[1 : 1 + count]]
        if len(signals) != count:
            raise ValueError(f"it announces {count} signals and describes {len(signals)}")
        columns = list[np.ndarray]()
        for (file, kind, offset), own in groupby(signals, lambda s: (s.file, s.format, s.offset)):
            columns.append(_samples(header.parent / file, kind, offset, len(list(own)), samples))
    except ValueError as error:
        raise ValueError(f"WFDB record {header}: {error}") from error
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"WFDB record {header}: its files hold different numbers of samples")
    return _recording(signals, np.concatenate(columns, axis=1), rate)


def _recording(signals: list[_Signal], digital_LC: np.ndarray, rate: float) -> Recording:
    odd = Counter[str]()
    for number, signal in enumerate(signals):
        if signal.checksum is not None:
            odd["checksums_differ"] += (int(digital_LC[:, number].sum()) - signal.checksum) % 65536 != 0
        odd["signals_without_gain"] += not signal.calibrated
    gap_C = np.array([_FORMATS[signal.format].gap for signal in signals])
    baseline_C, gain_C = np.array([(s.baseline, s.gain) for s in signals]).T
    values_LC = np.where(digital_LC == gap_C, np.nan, (digital_LC - baseline_C) / gain_C)
    names, units = tuple(signal.name for signal in signals), tuple(signal.unit for signal in signals)
    return Recording(values_LC, rate, names, units, odd)


def _record_line(lines: list[str]) -> tuple[int, float, int | None]:
    """(signals, samples per second, samples or None) of the first line."""
    words = lines[0].split() if lines else []
    if len(words) < 2 or not words[1].isdigit() or int(words[1]) < 1:
        raise ValueError("its first line does not give a name and a number of signals")
    if "/" in words[0]:
        raise ValueError("it consists of segments, which are not read; give the segments, or convert it to .npy")
    try:
        rate = float(words[2].partition("/")[0].partition("(")[0]) if len(words) > 2 else DEFAULT_RATE
        samples = int(words[3]) if len(words) > 3 else 0
    except ValueError:
        raise ValueError(f"its first line, {lines[0]!r}, does not give a rate and a number of samples") from None
    if not (0 < rate < float("inf")) or samples < 0:
        raise ValueError(f"a rate of {rate:g} and {samples} samples are impossible")
    return int(words[1]), rate, samples or None


def _signal_line(line: str) -> _Signal:
    """Fields: file, format, gain(baseline)/unit, resolution, zero, first sample, sum of samples, block, description."""
    words = line.split(maxsplit=8)
    form = _SIGNAL.fullmatch(words[1]) if len(words) > 1 else None
    gain = _GAIN.fullmatch(words[2]) if len(words) > 2 else None
    if form is None or (len(words) > 2 and gain is None):
        raise ValueError(f"its line {line!r} does not describe a signal")
    if form["format"] not in _FORMATS:
        known = ", ".join(_FORMATS)
        raise ValueError(f"format {form['format']} is not read; convert it to one of {known}, or to .npy")
    if int(form["frame"] or 1) != 1 or int(form["skew"] or 0) != 0:
        raise ValueError(f"several samples a frame or a skew ({words[1]}) are not read; convert it to .npy")
    if Path(words[0]).name != words[0] or words[0] in ("~", "-", "..", "."):
        raise ValueError(f"its samples are said to be in {words[0]!r}, which is no name of a file beside it")
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


def _samples(file: Path, kind: str, offset: int, signals: int, samples: int | None) -> np.ndarray:
    """int64 [L, signals] of one file."""
    try:
        raw = file.read_bytes()[offset:]
    except OSError as error:
        raise ValueError(f"its samples cannot be read: {error}") from error
    form = _FORMATS[kind]
    there = 8 * len(raw) // form.bits
    wanted = there // signals * signals if samples is None else samples * signals
    # A last odd sample of 12 bits takes two bytes, and writers may fill up to three
    spare = (8 * len(raw) - form.bits * wanted) // 8
    if spare < 0 or spare > (1 if form.bits == 12 else 0):
        raise ValueError(
            f"{file.name} holds {there / signals:g} samples of {signals} signals in format {kind}, the header says "
            f"{samples if samples is not None else 'nothing, and that is no whole number'}"
        )
    return form.decode(raw, wanted).reshape(-1, signals)
