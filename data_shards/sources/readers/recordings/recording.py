"""What every kind of signal file is once it is open: rates, names and units known, samples not yet read.

Shape legend: L samples, C channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

MAX_CHANNELS = 4096
_UNKNOWN = 0x7FFF0000  # sizes from here on mean that the writer did not know
Source = Path | bytes  # a file, or its content


class SignalError(ValueError):
    """A file is no signal, or not the one that is wanted. Says what is wrong, not where it was."""


@dataclass(frozen=True)
class Recording:
    """An open file.

    Attributes:
        channels: how many there are.
        read: (first sample, end, numbers of channels) -> [L, C]; fewer where the file ends.
        rates: samples per second of each channel, empty if the file does not say.
        lengths: samples of each channel, empty if only reading tells.
        names, units: of each channel, or empty.
        gaps: NaN means that there is no value, not that a number went wrong.
        odd: what is to be counted.
    """

    channels: int
    read: Callable[[int, int, Sequence[int]], np.ndarray]
    rates: tuple[float, ...] = ()
    lengths: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    gaps: bool = False
    odd: Counter[str] = field(default_factory=Counter)


def check_channels(count: int) -> None:
    """Raises SignalError where a header claims none, or more than are plausible."""
    if not 0 < count <= MAX_CHANNELS:
        raise SignalError(f"it has {count:,} channels, and 1 to {MAX_CHANNELS:,} are read")


def check_riff(begin: bytes, size: int) -> None:
    """Raises SignalError where a file of RIFF (.wav, .avi) or IFF (.aiff) says that it is larger than it is.

    Programs that write into a pipe do not know the size, and say 0 or as much as fits.
    """
    said = int.from_bytes(begin[4:8], "big" if begin[:4] == b"FORM" else "little") + 8
    if begin[:4] in (b"RIFF", b"FORM") and size < said < _UNKNOWN:
        raise SignalError(f"it is cut short: it says that it has {said:,} bytes, and {size:,} are there")


def needs(library: str, what: str, extra: str) -> SignalError:
    """The sentence for a library that is not there."""
    return SignalError(f"{what} need {library}: pip install 'fleximoe[{extra}]', or pip install {library}")


def in_words(error: BaseException) -> str:
    """One line of what a library said."""
    return " ".join(str(error).split())[:160] or type(error).__name__
