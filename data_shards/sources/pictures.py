"""Picture files as arrays. Needs Pillow (``pip install pillow``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

MAX_PIXELS = 1 << 26  # larger ones are refused before they are decoded


def read_picture(path: Path, shape: tuple[int, int, int], resize: bool = False) -> np.ndarray:
    """uint8 of ``shape`` (C, H, W); C is 1 (grey) or 3 (red, green, blue).

    Raises:
        ValueError: no picture there, a damaged or absurdly large one, or one of another size without ``resize``.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ValueError("pictures need Pillow: pip install pillow") from error
    channels, height, width = shape
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{path} has {picture.width} x {picture.height} pixels, at most {MAX_PIXELS} are read")
            if picture.size != (width, height) and not resize:
                raise ValueError(
                    f"{path} is {picture.width} x {picture.height} pixels, not {width} x {height}; set resize: true"
                )
            plain = picture.convert("L" if channels == 1 else "RGB")
            if plain.size != (width, height):
                plain = plain.resize((width, height), Image.Resampling.BILINEAR)
            array = np.asarray(plain, np.uint8)
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"picture {path} cannot be read: {error}") from error
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))
