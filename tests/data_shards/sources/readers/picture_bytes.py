"""Pictures as bytes of a file, also of kinds that Pillow reads and does not write."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def saved(picture: Any, file_format: str, **options: Any) -> bytes:
    """The picture as a file; an array becomes a picture."""
    stream = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(stream, file_format, **options)
    return stream.getvalue()


def png(colour_type: int, depth: int, rows: list[bytes], width: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file from packed rows; `chunks` stand before the data, e.g. (b"tRNS", ...)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", header), *(chunk(*own) for own in chunks), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(
    data: bytes, width: int, height: int, bits: int, photometric: int = 1, sample_format: int = 1, big: bool = False
) -> bytes:
    """An uncompressed TIFF file with one number a pixel."""
    order = ">" if big else "<"
    entries = ((256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8),
               (277, 1), (278, height), (279, len(data)), (339, sample_format))  # fmt: skip
    start = 8 + len(data) + len(data) % 2
    table = struct.pack(order + "H", len(entries))
    for tag, value in entries:
        table += struct.pack(order + "HHII", tag, 4, 1, value)
    head = (b"MM\0*" if big else b"II*\0") + struct.pack(order + "I", start)
    return head + data + b"\0" * (len(data) % 2) + table + struct.pack(order + "I", 0)
