"""A stretch of some channels of a signal file of any kind, as numbers: bounded before anything is allocated.

What a file is, is seen from its first bytes, whatever its name.

Shape legend: L samples, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Literal

import numpy as np

from data_shards.sources.readers.recordings.container import film_format
from data_shards.sources.readers.recordings.edf_files import open_edf
from data_shards.sources.readers.recordings.film_sound import open_film_sound
from data_shards.sources.readers.recordings.hdf5_files import open_hdf5
from data_shards.sources.readers.recordings.numpy_files import open_npy, open_npz
from data_shards.sources.readers.recordings.recording import Recording, SignalError, Source, check_riff, in_words
from data_shards.sources.readers.recordings.sound_files import open_sound
from data_shards.sources.readers.signals import Signal, lead_order
from data_shards.sources.readers.wfdb import header_file, open_wfdb

_SOUND = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"FORM", b".snd", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"caff")
_MOST_NUMBERS = 1 << 28  # of samples times channels, which is a gibibyte as float32
Channels = Literal["mix"] | tuple[int, ...] | tuple[str, ...] | None


@dataclass(frozen=True)
class Part:
    """What is wanted of a file.

    Attributes:
        leads: how many channels there have to be, or the names of those that are wanted. channels: which ones, if not
            those: by number or name, or "mix" for their mean. start, end: in seconds of the file; None is its own.
        rate: samples per second that are wanted, and the rate of files that say none. array: of a .npz or HDF5 file.
        max_length: most samples, at the wanted rate.
    """

    leads: int | tuple[str, ...]
    channels: Channels = None
    start: float | None = None
    end: float | None = None
    rate: float | None = None
    array: str | None = None
    max_length: int = _MOST_NUMBERS


def read_signal(source: Source, where: str, part: Part) -> Signal:
    """The wanted part of a signal file, at the file's own rate.

    Args:
        source: a file (of a WFDB record with or without .hea or .dat), or its content. where: for messages.

    Raises:
        ValueError: no such file, one of another kind, a damaged one, channels or a stretch that it does not have, more
            samples than are wanted, or samples that are no numbers. All begin with ``where``.
    """
    try:
        with _opened(source, part.array) as recording:
            columns = _columns(recording, part, where)
            rate, length = _clock(recording, columns)
            first, end = _samples(part, rate, length)
            most = min(_most(part, rate), _MOST_NUMBERS // len(columns))
            if end is not None and end - first > most:
                raise SignalError(_too_long(end - first, most, rate, part))
            values_LC = recording.read(first, end if end is not None else first + most + 1, columns)
            if end is None and len(values_LC) > most:
                raise SignalError(_too_long(None, most, rate, part))
            _check_length(values_LC, first, end, rate, part)
            return _signal(recording, columns, rate, values_LC, part)
    except SignalError as error:
        raise ValueError(f"{where}: {error}") from error
    except OSError as error:
        raise ValueError(f"{where}: it cannot be read: {error.strerror or in_words(error)}") from error


def is_sound(content: bytes) -> bool:
    """Whether it begins as a sound file does that libsndfile knows."""
    return content.startswith(_SOUND)


def _opened(source: Source, array: str | None) -> AbstractContextManager[Recording]:
    if isinstance(source, bytes):
        begin, size = source[:12], len(source)
    elif source.suffix in (".hea", ".dat") or (not source.is_file() and header_file(source).is_file()):
        return open_wfdb(source)
    else:
        if source.is_dir():
            raise SignalError("it is a folder")
        with source.open("rb") as stream:
            begin, size = stream.read(12), source.stat().st_size
    if not begin:
        raise SignalError("it is empty (0 bytes)")
    if begin.startswith(b"\x93NUMPY"):
        return open_npy(source, array)
    if begin.startswith(b"PK\x03\x04"):
        return open_npz(source, array)
    if begin.startswith(b"\x89HDF\r\n\x1a\n"):
        return open_hdf5(source, array)
    if begin.startswith((b"0       ", b"\xffBIOSEMI")):
        return open_edf(source)
    if film_format(begin) is not None:
        return open_film_sound(source)
    if is_sound(begin):
        check_riff(begin, size)
        return open_sound(source)
    raise SignalError(
        "it is neither a sound (.wav, .flac, .ogg, .mp3, ...) nor a film nor a WFDB record (.hea), nor an EDF, HDF5 or "
        "NumPy file (.npy, .npz)"
    )


def _columns(recording: Recording, part: Part, where: str) -> list[int]:
    """Numbers of the wanted channels, in order."""
    count, names = recording.channels, recording.names
    has = f"it has {', '.join(names)}" if names else f"it has {count}, from 0 to {count - 1}"
    if part.channels == "mix":
        return list(range(count))
    if part.channels is not None:
        if isinstance(part.channels[0], str):
            if not names:
                raise SignalError(f"its channels have no names, and channels asks for {part.channels[0]!r}; {has}")
            return lead_order(names, [str(name) for name in part.channels], where)
        missing = [number for number in part.channels if int(number) >= count]
        if missing:
            raise SignalError(f"it has no channel {missing[0]}; {has}")
        return [int(number) for number in part.channels]
    if names and not isinstance(part.leads, int):
        return lead_order(names, part.leads, where)
    wanted = part.leads if isinstance(part.leads, int) else len(part.leads)
    if wanted != count:
        told = f" ({', '.join(names)})" if names else ""
        raise SignalError(
            f"it has {_many(count)}{told}, and {_many(wanted, 'lead')} declared; say which of them with channels: "
            "[0, ...], or take their mean with channels: mix"
        )
    return list(range(count))


def _many(count: int, what: str = "channel") -> str:
    verb = {"lead": (" is", " are")}.get(what, ("", ""))
    return f"{count} {what}{verb[0]}" if count == 1 else f"{count} {what}s{verb[1]}"


def _clock(recording: Recording, columns: Sequence[int]) -> tuple[float | None, int | None]:
    """Rate and length that the channels share."""
    rates = {recording.rates[column] for column in columns} if recording.rates else set[float]()
    lengths = {recording.lengths[column] for column in columns} if recording.lengths else set[int]()
    if len(rates) > 1 or len(lengths) > 1:
        each = {f"{recording.rates[column]:g}": column for column in columns} if len(rates) > 1 else {}
        told = [f"{recording.names[column]} {rate}" for rate, column in each.items()] if recording.names else list(each)
        raise SignalError(
            f"its channels have several rates or lengths ({', '.join(told)}); make those of each rate a modality of "
            "their own"
        )
    return (rates.pop() if rates else None), (lengths.pop() if lengths else None)


def _samples(part: Part, rate: float | None, length: int | None) -> tuple[int, int | None]:
    """First sample, and the one that is no more taken (None: to the end, wherever that is)."""
    if part.start is None and part.end is None:
        return 0, length
    clock = rate or part.rate
    if clock is None:
        raise SignalError("start and end are seconds, and neither the file nor the mapping says its rate; declare rate")
    start, end = part.start or 0.0, part.end
    if not start >= 0 or (end is not None and not end > start):
        raise SignalError(f"the stretch {_told(start, end)} is none")
    first, stop = _sample(start, clock), length if end is None else _sample(end, clock)
    if length is not None and (first >= length or (stop or 0) > length):
        raise SignalError(_outside(start, end, length / clock))
    return first, stop


def _sample(second: float, rate: float) -> int:
    """The first sample at or after a second; exact for numbers as they are written."""
    return ceil(Fraction(repr(float(second))) * Fraction(repr(float(rate))))


def _outside(start: float, end: float | None, seconds: float) -> str:
    return f"the stretch {_told(start, end)} is not within its {seconds:g} seconds"


def _told(start: float, end: float | None) -> str:
    return f"from second {start:g} on" if end is None else f"from second {start:g} to {end:g}"


def _most(part: Part, rate: float | None) -> int:
    """Samples at the file's rate that become max_length at the wanted one."""
    if rate is None or part.rate is None or rate == part.rate:
        return part.max_length
    return int(part.max_length * rate / part.rate)


def _too_long(samples: int | None, most: int, rate: float | None, part: Part) -> str:
    many = f"{samples:,} samples" if samples is not None else f"more than {most:,} samples"
    seconds = f" ({samples / rate:g} seconds)" if samples is not None and rate else ""
    return (
        f"it holds {many}{seconds}, and max_length {part.max_length:,} allows {most:,}; take a stretch of it (start, "
        "end), or give a larger max_length"
    )


def _check_length(values_LC: np.ndarray, first: int, end: int | None, rate: float | None, part: Part) -> None:
    there = len(values_LC)
    if end is not None and there < end - first:
        clock = rate or part.rate or 1.0
        if part.end is not None:
            raise SignalError(_outside(part.start or 0.0, part.end, (first + there) / clock))
        raise SignalError(f"it is cut short: {there:,} samples are there, and {end - first:,} were to be read")
    if not there:
        if part.start is not None and part.end is not None:
            raise SignalError(f"no sample lies in the stretch from second {part.start:g} to {part.end:g}")
        if first:
            raise SignalError(f"the stretch from second {part.start or 0:g} on begins after its end")
        raise SignalError("it holds no samples")


def _signal(
    recording: Recording, columns: Sequence[int], rate: float | None, values_LC: np.ndarray, part: Part
) -> Signal:
    if not recording.gaps and values_LC.dtype.kind == "f" and not (finite_LC := np.isfinite(values_LC)).all():
        place, channel = (int(number) for number in np.argwhere(~finite_LC)[0])
        raise SignalError(
            f"sample {place} of channel {columns[channel]} is {values_LC[place, channel]}, no number, as are "
            f"{int((~finite_LC).sum()) - 1} others; mend them, or leave the recording out"
        )
    names = tuple(recording.names[column] for column in columns) if recording.names else ()
    units = tuple(recording.units[column] for column in columns) if recording.units else ()
    if part.channels == "mix":
        if len(set(units)) > 1:
            raise SignalError(f"its channels are in {', '.join(sorted(set(units)))}, and have no mean")
        values_LC, names, units = values_LC.mean(axis=1, keepdims=True, dtype=np.float64), (), units[:1]
    elif part.channels is not None and not isinstance(part.leads, int):
        names = part.leads  # what channels picks out is called so
    return Signal(values_LC, rate, names, units, recording.odd)
