"""EDF and BDF files, the formats of polysomnographs and electroencephalographs, in physical units. Needs pyEDFlib.

Channels may have rates of their own. Annotations are no channel, and files with interruptions (EDF+D) are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data_shards.sources.readers.recordings.recording import (
    Recording,
    SignalError,
    Source,
    check_channels,
    in_words,
    needs,
)


@contextmanager
def open_edf(source: Source) -> Iterator[Recording]:
    """All channels of a file."""
    try:
        import pyedflib
    except ImportError as error:
        raise needs("pyedflib", "EDF files", "signals") from error
    if not isinstance(source, Path):
        raise SignalError("an EDF file is read from a path, not from bytes in a table; save it as a file")
    try:
        reader = pyedflib.EdfReader(str(source), pyedflib.DO_NOT_READ_ANNOTATIONS, pyedflib.CHECK_FILE_SIZE)
    except Exception as error:  # what it cannot read is answered by nearly every type of error
        said = in_words(error).removeprefix(f"{source}: ")
        raise SignalError(f"it is no EDF file that is read ({said})") from error
    try:
        check_channels(reader.signals_in_file)
        channels = range(reader.signals_in_file)
        lengths = tuple(int(number) for number in reader.getNSamples())

        def read(first: int, end: int, columns: Sequence[int]) -> np.ndarray:
            length = min(end, *(lengths[column] for column in columns)) - first
            return np.stack([reader.readSignal(column, first, length) for column in columns], axis=1)

        yield Recording(
            len(channels),
            read,
            rates=tuple(float(reader.getSampleFrequency(channel)) for channel in channels),
            lengths=lengths,
            names=tuple(reader.getLabel(channel).strip() for channel in channels),
            units=tuple(reader.getPhysicalDimension(channel).strip() for channel in channels),
        )
    finally:
        reader.close()
