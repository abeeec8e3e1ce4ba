"""Pictures, from files or from bytes, as arrays of one size. Needs Pillow (``pip install pillow``).

All go one way: decoded and turned upright (`picture_files`), made grey or colour of 8 bits (`picture_values`), fitted.
What was done to a picture is counted in notes ``pictures_turned``, ``_flattened``, ``_reduced_to_8_bits``,
``_first_of_several_frames`` and ``_colour_profile_not_applied``; to a mask, in ``masks_turned`` and so on.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.sources.readers.picture_files import MAX_PIXELS, Decoded, PictureError, decode, pillow
from data_shards.sources.readers.picture_values import Background, Count, class_numbers, eight_bit


def read_picture(
    source: Path | bytes,
    where: str,
    shape: tuple[int, int, int],
    resize: bool,
    notes: Counter[str],
    background: Background = "white",
) -> np.ndarray:
    """uint8 of ``shape`` (C, H, W); C is 1 (grey) or 3 (red, green, blue).

    Args:
        source: a file, or its content. where: file, row or key, for messages. resize: stretch to H x W what is of
            another size. notes: what was done to the picture. background: colour below what is transparent.

    Raises:
        ValueError: no picture there, a damaged or absurdly large one, numbers without a plain meaning, or one of
            another size (upright) without ``resize``. All begin with ``where``.
    """
    try:
        decoded = decode(source)
    except PictureError as error:
        raise ValueError(f"{where} cannot be read: {error}") from error
    return fit_picture(decoded, where, shape, resize, notes, background)


def fit_picture(
    decoded: Decoded,
    where: str,
    shape: tuple[int, int, int],
    resize: bool,
    notes: Counter[str],
    background: Background = "white",
) -> np.ndarray:
    """As `read_picture`, of a picture that is decoded: that of a film."""
    channels, height, width = shape
    try:
        plain = eight_bit(decoded, channels, background, _counts("pictures", notes))
    except PictureError as error:
        raise ValueError(f"{where} cannot be read: {error}") from error
    if plain.size != (width, height):
        if not resize:
            raise ValueError(
                f"{where} is {plain.width} x {plain.height} pixels, not {width} x {height}; set resize: true"
            )
        plain = plain.resize((width, height), pillow().Resampling.BILINEAR)
    return _channels_first(plain)


def decode_picture(
    source: Path | bytes, size: int, notes: Counter[str], background: Background = "white"
) -> np.ndarray:
    """uint8 (3, size, size): the shorter side is scaled to `size`, the middle of the longer one is kept.

    Raises:
        PictureError: no bytes, no picture, more pixels than are plausible, or numbers without a plain meaning.
    """
    plain = eight_bit(decode(source), 3, background, _counts("pictures", notes))
    return _channels_first(_square(plain, size, pillow().Resampling.BICUBIC))


def decode_mask(source: Path | bytes, size: int, notes: Counter[str]) -> np.ndarray:
    """uint8 (1, size, size) of class numbers, turned and cut as `decode_picture` does; no number is made up.

    Raises:
        PictureError: as `decode_picture`, or colours, alpha or too large numbers instead of class numbers.
    """
    mask = class_numbers(decode(source), _counts("masks", notes))
    return _channels_first(_square(mask, size, pillow().Resampling.NEAREST))


def _counts(what: str, notes: Counter[str]) -> Count:
    def count(done: str) -> None:
        notes[f"{what}_{done}"] += 1

    return count


def _channels_first(plain: Any) -> np.ndarray:
    """uint8 (C, H, W) of an image in mode L or RGB."""
    array = np.asarray(plain, np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _square(plain: Any, size: int, resample: Any) -> Any:
    """The shorter side scaled to `size`, the middle of the longer one. Raises PictureError."""
    if plain.size == (size, size):
        return plain
    scale = size / min(plain.size)
    wide, high = (max(size, round(side * scale)) for side in plain.size)
    if wide * high > MAX_PIXELS:
        raise PictureError(f"{plain.width} x {plain.height} pixels are too long and thin for a square of {size}")
    left, top = (wide - size) // 2, (high - size) // 2
    return plain.resize((wide, high), resample).crop((left, top, left + size, top + size))
