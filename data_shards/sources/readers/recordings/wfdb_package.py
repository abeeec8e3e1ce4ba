"""WFDB records of the kinds that only the package ``wfdb`` reads: segments, several samples a frame, skews, FLAC.

Values are its ``p_signal``: the mean of several samples a frame, skews taken back, one segment after the other. It is
given only headers that name nothing but files beside them.

Shape legend: L samples, C signals.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.sources.readers.recordings.recording import Recording, SignalError, check_channels, in_words, needs


def open_by_package(header: Path, why: str) -> Recording:
    """The record of a header; ``why`` it is one for the package, for messages.

    Raises:
        SignalError: the package is not there, or cannot read it.
    """
    try:
        import wfdb
    except ImportError as error:
        raise needs("wfdb", f"{why}, and such records", "signals") from error
    if "::" in str(header):
        raise SignalError(f"{why}, and a path with :: is not read")
    record = str(header.with_suffix(""))
    about = _asked(why, lambda: wfdb.rdheader(record))
    names = list(getattr(about, "seg_name", None) or about.file_name or [])
    wrong = next((name for name in names if Path(name).name != name or name in ("-", "..", ".")), None)
    if wrong is not None:
        raise SignalError(f"{why}, and it leads to {wrong!r}, which is no name of a file beside it")
    if hasattr(about, "seg_name"):
        about = _asked(why, lambda: wfdb.rdheader(record, rd_segments=True))
        inner = [name for one in about.segments if one is not None for name in one.file_name or []]
        if any(Path(name).name != name for name in inner):
            raise SignalError(f"{why}, and one leads to a file that is not beside it")
    count, length, rate = int(about.n_sig or 0), int(about.sig_len or 0), float(about.fs or 0)
    check_channels(count)
    if not (length and 0 < rate < float("inf")):
        raise SignalError(f"{why}, and its header says {length} samples at {rate:g} per second")
    # One sample tells what a record of segments does not say in its own header
    look = _asked(why, lambda: wfdb.rdrecord(record, sampfrom=0, sampto=1))

    def read(first: int, end: int, columns: Sequence[int]) -> np.ndarray:
        found = _asked(why, lambda: wfdb.rdrecord(record, sampfrom=first, sampto=end))
        return np.asarray(found.p_signal[:, list(columns)])

    names, units = [name or "" for name in look.sig_name], [unit or "mV" for unit in look.units]
    return Recording(count, read, (rate,) * count, (length,) * count, tuple(names), tuple(units), gaps=True)


def _asked(why: str, ask: Any) -> Any:
    try:
        return ask()
    except Exception as error:  # what it cannot read is answered by nearly every type of error
        raise SignalError(f"{why}, and the package wfdb says: {in_words(error)}") from error
