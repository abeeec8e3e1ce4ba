"""NumPy's files, .npy and .npz: arrays of numbers of shape (samples, channels) or (samples,). Nothing is unpickled.

The header is read first, so that nothing is allocated that the file does not hold or that nobody wants.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_shards.sources.readers.recordings.recording import Recording, SignalError, Source, check_channels

_HEADER_BYTES = 10_000  # most of a header that is read, as numpy.load has it
_MOST_BY_CHANNEL = 1 << 28  # numbers of an array in the order of Fortran, which is read as a whole


@contextmanager
def open_npy(source: Source, array: str | None) -> Iterator[Recording]:
    """The array of a .npy file."""
    if array is not None:
        raise SignalError(
            f"it is a .npy file, which holds one array without a name; array: {array} is for .npz and HDF5"
        )
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as stream:
        stream.seek(0, io.SEEK_END)
        size = stream.tell()
        stream.seek(0)
        yield _recording(stream, size)


@contextmanager
def open_npz(source: Source, array: str | None) -> Iterator[Recording]:
    """The array of that name, or the only one, of a .npz file."""
    try:
        with zipfile.ZipFile(source if isinstance(source, Path) else io.BytesIO(source)) as packed:
            members = {info.filename.removesuffix(".npy"): info for info in packed.infolist()}
            name = only_name(array, list(members), ".npz file")
            with packed.open(members[name]) as stream:
                yield _recording(stream, members[name].file_size)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise SignalError(f"it is a damaged .npz file ({error})") from error


def only_name(array: str | None, names: Sequence[str], what: str) -> str:
    """The array that is wanted, or the only one there is; SignalError lists those there are."""
    if array is None and len(names) == 1:
        return names[0]
    if array is None or array not in names:
        there = ", ".join(sorted(names)[:20]) or "nothing"
        wanted = "and array does not say which is wanted" if array is None else f"and no array {array!r}"
        raise SignalError(f"this {what} holds {there}, {wanted}")
    return array


def _recording(stream: IO[bytes], size: int) -> Recording:
    """Of a stream that begins with the header of a .npy file, and has ``size`` bytes."""
    shape, fortran, dtype = _header(stream)
    if dtype.kind not in "iuf" or len(shape) not in (1, 2):
        raise SignalError(f"it holds {dtype} of shape {shape}, not numbers of shape (samples, channels) or (samples,)")
    length, channels = (*shape, 1)[:2]
    check_channels(channels)
    there = size - stream.tell()
    if there < length * channels * dtype.itemsize:
        raise SignalError(
            f"it holds no whole array: its header says {dtype} of shape {shape}, and {there:,} bytes follow"
        )

    def read(first: int, end: int, columns: Sequence[int]) -> np.ndarray:
        if fortran and length * channels > _MOST_BY_CHANNEL:
            raise SignalError(f"its {length:,} samples are stored channel by channel; save a copy in the order of C")
        # Of a file in the order of Fortran all is read, as each channel is one piece
        stream.seek(0 if fortran else first * channels * dtype.itemsize, io.SEEK_CUR)
        rows = length if fortran else end - first
        flat = np.frombuffer(stream.read(rows * channels * dtype.itemsize), dtype)
        block = flat.reshape(channels, length).T[first:end] if fortran else flat.reshape(-1, channels)
        return np.asarray(block[:, list(columns)])

    return Recording(channels, read, lengths=(length,) * channels)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=_HEADER_BYTES)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream, max_header_size=_HEADER_BYTES)
        else:
            raise ValueError(f"version {version} of the format")
    except (ValueError, EOFError, SyntaxError, TypeError) as error:
        raise SignalError(f"it holds no whole array ({error})") from error
    if dtype.hasobject:
        raise SignalError("it holds objects, not numbers; save one array of numbers with numpy.save")
    if any(size < 0 for size in shape):
        raise SignalError(f"it says that its shape is {shape}")
    return shape, fortran, dtype
