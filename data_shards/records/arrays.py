"""Named arrays <-> bytes in the safetensors layout, with strict limits and without ever running code from a file.

``u64 header length | JSON header | data``. The header gives dtype, shape and byte range of each array; ranges must tile
the data without hole or overlap. Reading yields views into the given buffer: nothing is allocated on the word of a
header, so an absurd shape is refused before memory is taken. Any safetensors reader can open these bytes.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_shards.errors import RecordError

_CODES = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U32": "<u4", "I16": "<i2", "I8": "|i1", "U8": "|u1"}
_DTYPES = {code: np.dtype(text) for code, text in _CODES.items()}
_NAMES = {dtype: code for code, dtype in _DTYPES.items()}
_INT = {int}  # and not bool
JSON = json.JSONEncoder(separators=(",", ":"))


@dataclass(frozen=True)
class Limits:
    """What a reader accepts from one tar member.

    Attributes:
        header_bytes: longest JSON header.
        member_bytes: longest member.
    """

    header_bytes: int = 1 << 20
    member_bytes: int = 1 << 28


def dump_tensors(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Serialise arrays; wide types first, so that every array starts at a multiple of its item size.

    Raises:
        ValueError: a dtype that the layout does not carry (objects and strings never do).
    """
    items = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    layout = _layout(tuple((name, array.dtype, array.shape) for name, array in items))
    text = f'{{"__metadata__":{JSON.encode(dict(metadata))}{layout}}}'.encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(array.tobytes() for _, array in items)])


@functools.lru_cache(maxsize=1024)
def _layout(items: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]) -> str:
    """What a header says of arrays: records of one kind have the same. Raises ValueError, as `dump_tensors`."""
    text, offset = "", 0
    for name, dtype, shape in items:
        code = _NAMES.get(dtype)
        if code is None:
            raise ValueError(f"array {name}: dtype {dtype} cannot be stored; use one of {', '.join(_CODES)}")
        end = offset + math.prod(shape) * dtype.itemsize
        text += f",{JSON.encode(name)}:" + JSON.encode({"dtype": code, "shape": shape, "data_offsets": [offset, end]})
        offset = end
    return text


def load_tensors(
    buffer: bytes | memoryview,
    limits: Limits = Limits(),
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read-only views of the arrays in ``buffer``, and the metadata.

    Raises:
        RecordError: anything that is not exactly the layout, or is over the limits.
    """
    size = len(buffer)
    if size > limits.member_bytes:
        raise RecordError(f"the member has {size} bytes, the limit is {limits.member_bytes}")
    length = int.from_bytes(buffer[:8], "little") if size >= 8 else -1
    if length < 2 or length > limits.header_bytes or 8 + length > size:
        raise RecordError(f"header of {length} bytes in a member of {size} (limit {limits.header_bytes})")
    header = _parse(bytes(buffer[8 : 8 + length]))
    metadata = header.pop("__metadata__", {})
    base, position, tensors = 8 + length, 0, {}
    for name, entry in header.items():
        tensors[name], position = _view(buffer, base, position, name, entry)
    if base + position != size:
        raise RecordError(f"arrays end at byte {base + position}, the member at {size}")
    return tensors, metadata


def _parse(text: bytes) -> dict[str, dict[str, Any]]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"the header is not JSON: {error}") from error
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise RecordError("the header is not a table of arrays")
    if not all(isinstance(value, str) for value in header.get("__metadata__", {}).values()):
        raise RecordError("metadata must be text")
    return header


def _view(
    buffer: bytes | memoryview, base: int, position: int, name: str, entry: dict[str, Any]
) -> tuple[np.ndarray, int]:
    """The array of one header entry, which must start at ``position``; returns it and its end."""
    dtype = _DTYPES.get(str(entry.get("dtype")))
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if dtype is None:
        raise RecordError(f"array {name}: unknown dtype {entry.get('dtype')!r}")
    if not _counts(shape, 8) or not _counts(offsets, 2) or len(offsets) != 2:
        raise RecordError(f"array {name}: shape {shape!r} or offsets {offsets!r} are not small lists of counts")
    elements = 1
    for extent in shape:
        elements *= extent
    start, end = offsets
    if start != position or end - start != elements * dtype.itemsize or base + end > len(buffer):
        raise RecordError(f"array {name}: shape {shape} of {dtype} does not fill bytes {start}..{end} (at {position})")
    return np.frombuffer(buffer, dtype, elements, base + start).reshape(shape), end


def _counts(value: Any, most: int) -> bool:
    if not isinstance(value, list) or len(value) > most or not _INT.issuperset(map(type, value)):
        return False
    return min(value, default=0) >= 0
