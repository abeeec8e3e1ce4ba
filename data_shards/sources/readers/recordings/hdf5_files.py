"""HDF5 files: one dataset of numbers of shape (samples, channels) or (samples,). Needs h5py.

A file that leads to other files (external links, external or virtual storage) is refused.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.sources.readers.recordings.numpy_files import only_name
from data_shards.sources.readers.recordings.recording import (
    Recording,
    SignalError,
    Source,
    check_channels,
    in_words,
    needs,
)

_CHUNK_BYTES = 1 << 28  # most that one compressed piece of a dataset may become


@contextmanager
def open_hdf5(source: Source, array: str | None) -> Iterator[Recording]:
    """The dataset of that path, or the only one, of a file."""
    try:
        import h5py
    except ImportError as error:
        raise needs("h5py", "HDF5 files", "signals") from error
    try:
        with h5py.File(source if isinstance(source, Path) else io.BytesIO(source), "r") as file:
            if array is None:
                array = only_name(None, _datasets(file, h5py), "HDF5 file")
            yield _recording(file, _dataset(file, array, h5py))
    except (OSError, RuntimeError, KeyError) as error:
        raise SignalError(f"it is a damaged HDF5 file ({in_words(error)})") from error


def _datasets(file: Any, h5py: Any) -> list[str]:
    """Paths of all datasets; links are not followed."""
    found: list[str] = []
    file.visititems(lambda name, thing: found.append(name) if isinstance(thing, h5py.Dataset) else None)
    return found


def _dataset(file: Any, path: str, h5py: Any) -> Any:
    """The dataset of a path, step by step, so that no link leads out of the file."""
    place = file
    for step in path.strip("/").split("/"):
        link = place.get(step, getlink=True) if isinstance(place, h5py.Group) else None
        if isinstance(link, h5py.ExternalLink):
            raise SignalError(f"its {path!r} leads to another file, which is not read")
        if link is None:
            only_name(path, _datasets(file, h5py), "HDF5 file")
        place = None if link is None else place.get(step)
        if place is None:
            raise SignalError(f"its {path!r} is a link that leads nowhere")
    if not isinstance(place, h5py.Dataset):
        raise SignalError(f"its {path!r} is a group; array names a dataset, e.g. {_first(place, path, h5py)}")
    if place.file.id != file.id or place.external or place.is_virtual:
        raise SignalError(f"its {path!r} leads to another file, which is not read")
    return place


def _first(group: Any, path: str, h5py: Any) -> str:
    inner = _datasets(group, h5py)
    return f"{path.strip('/')}/{inner[0]}" if inner else "none is in it"


def _recording(file: Any, dataset: Any) -> Recording:
    shape, dtype = dataset.shape, dataset.dtype
    if shape is None or dtype.kind not in "iuf" or len(shape) not in (1, 2):
        raise SignalError(f"it holds {dtype} of shape {shape}, not numbers of shape (samples, channels) or (samples,)")
    length, channels = (*shape, 1)[:2]
    check_channels(channels)
    if dataset.chunks is not None and prod(dataset.chunks) * dtype.itemsize > _CHUNK_BYTES:
        raise SignalError(f"its pieces of {dataset.chunks} numbers are larger than {_CHUNK_BYTES:,} bytes")

    def read(first: int, end: int, columns: Sequence[int]) -> np.ndarray:
        block = dataset[first:end]
        return np.asarray(block.reshape(len(block), channels)[:, list(columns)])

    return Recording(channels, read, lengths=(length,) * channels)
