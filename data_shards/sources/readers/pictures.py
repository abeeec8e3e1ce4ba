"""Picture files as arrays. Needs Pillow (``pip install pillow``)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

MAX_PIXELS = 1 << 26  # larger ones are refused before they are decoded


class PictureError(ValueError):
    """A picture is empty, damaged or absurdly large. The text says what is wrong, not where it was."""


def read_picture(path: Path, shape: tuple[int, int, int], resize: bool = False) -> np.ndarray:
    """uint8 of ``shape`` (C, H, W); C is 1 (grey) or 3 (red, green, blue).

    Raises:
        ValueError: no picture there, a damaged or absurdly large one, or one of another size without ``resize``.
    """
    channels, height, width = shape
    try:
        with _pillow().open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{path} has {picture.width} x {picture.height} pixels, at most {MAX_PIXELS} are read")
            if picture.size != (width, height) and not resize:
                raise ValueError(
                    f"{path} is {picture.width} x {picture.height} pixels, not {width} x {height}; set resize: true"
                )
            plain = picture.convert("L" if channels == 1 else "RGB")
            if plain.size != (width, height):
                plain = plain.resize((width, height), _pillow().Resampling.BILINEAR)
            array = np.asarray(plain, np.uint8)
    except (OSError, SyntaxError, _pillow().DecompressionBombError) as error:
        raise ValueError(f"picture {path} cannot be read: {error}") from error
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def decode_picture(data: bytes, size: int) -> np.ndarray:
    """uint8 (3, size, size): the shorter side is scaled to `size`, the middle of the longer one is kept.

    Raises:
        PictureError: no bytes, no picture, or more pixels than are plausible.
    """
    plain = _square(_open(data).convert("RGB"), size, _pillow().Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(plain, np.uint8).transpose(2, 0, 1))


def decode_mask(data: bytes, size: int) -> np.ndarray:
    """uint8 (1, size, size) of class numbers, cut as `decode_picture` cuts the picture; no number is made up.

    Raises:
        PictureError: as `decode_picture`, or colours instead of numbers.
    """
    mask = _open(data)
    if mask.mode not in ("1", "L", "P"):
        raise PictureError(f"a mask is a grey or palette picture of class numbers, and this one has mode {mask.mode}")
    return np.asarray(_square(mask, size, _pillow().Resampling.NEAREST)).astype(np.uint8)[None]


def _open(data: bytes) -> Any:
    """The decoded picture. Raises PictureError."""
    if not data:
        raise PictureError("the picture is empty (0 bytes)")
    try:
        with _pillow().open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise PictureError(f"{picture.width} x {picture.height} pixels, at most {MAX_PIXELS} are read")
            picture.load()
            return picture.copy()
    except (OSError, SyntaxError, _pillow().DecompressionBombError) as error:
        raise PictureError(f"the picture cannot be decoded ({' '.join(str(error).split())[:120]})") from error


def _square(plain: Any, size: int, resample: Any) -> Any:
    """The shorter side scaled to `size`, the middle of the longer one."""
    if plain.size == (size, size):
        return plain
    scale = size / min(plain.size)
    wide, high = (max(size, round(side * scale)) for side in plain.size)
    left, top = (wide - size) // 2, (high - size) // 2
    return plain.resize((wide, high), resample).crop((left, top, left + size, top + size))


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError("pictures need Pillow: pip install pillow") from error
    return Image
