"""A picture's bytes, decoded by Pillow and turned upright, with what only the file says about its numbers.

Whatever is wrong with a file is a `PictureError`: it is empty, cut short, damaged, absurdly large, or no picture.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_PIXELS = 1 << 26  # larger ones are refused before they are decoded
ORIENTATION = 0x0112  # the EXIF and TIFF tag: 1 is upright, 2 to 8 are turned or mirrored
PHOTOMETRIC, SAMPLE_FORMAT = 262, 339  # TIFF tags
# Not decoded: PostScript is a program that another program would run; the others hold measurements without a range.
REFUSED = {"EPS": "PostScript, which is a program", "FITS": "FITS", "MCIDAS": "a McIdas area file"}


class PictureError(ValueError):
    """A picture cannot be read, or its numbers have no plain meaning. Says what is wrong, not where it was."""


@dataclass(frozen=True)
class Decoded:
    """The first frame of a picture, upright.

    Attributes:
        picture: Pillow's image, loaded. format: e.g. PNG. raw: how the file stores its numbers, in Pillow's words
            (``RGB;16B``), "" where the decoder does not say. turned: it was not upright in the file. frames: how many
            there are. white_is_zero, signed: of a TIFF file.
    """

    picture: Any
    format: str = ""
    raw: str = ""
    turned: bool = False
    frames: int = 1
    white_is_zero: bool = False
    signed: bool = False


def decode(source: Path | bytes) -> Decoded:
    """The first frame of a file, or of a file's bytes.

    Raises:
        PictureError: no file or no bytes, no picture, a damaged one, or more pixels than are plausible.
    """
    image = pillow()
    if isinstance(source, Path) and not source.is_file():
        raise PictureError("there is no such file" if not source.exists() else "is not a file")
    if (source.stat().st_size if isinstance(source, Path) else len(source)) == 0:
        raise PictureError("the picture is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd tags, and of sizes that are refused below
            with image.open(source if isinstance(source, Path) else io.BytesIO(source)) as picture:
                return _loaded(picture)
    except PictureError:
        raise
    except image.UnidentifiedImageError as error:
        raise PictureError("the picture cannot be decoded (no format that Pillow knows)") from error
    except Exception as error:  # decoders answer damaged bytes with nearly every type of error
        raise PictureError(f"the picture cannot be decoded ({' '.join(str(error).split())[:120]})") from error


def _loaded(picture: Any) -> Decoded:
    if picture.format in REFUSED:
        raise PictureError(f"it is {REFUSED[picture.format]}; save it as PNG, TIFF or JPEG")
    if picture.width * picture.height > MAX_PIXELS:
        raise PictureError(f"{picture.width} x {picture.height} pixels, at most {MAX_PIXELS} are read")
    if not picture.width * picture.height:
        raise PictureError(f"{picture.width} x {picture.height} pixels")
    from PIL import ImageOps

    raw, tags = _raw(picture.tile), getattr(picture, "tag_v2", {})
    white_is_zero, signed = tags.get(PHOTOMETRIC) == 0, 2 in tuple(tags.get(SAMPLE_FORMAT, ()))
    turned = picture.getexif().get(ORIENTATION) in range(2, 9)
    frames = int(getattr(picture, "n_frames", 1))
    # Where Pillow turns a TIFF file while loading it, nothing is left to be turned.
    upright = ImageOps.exif_transpose(picture)
    return Decoded(upright, str(picture.format), raw, turned, frames, white_is_zero, signed)


def _raw(tiles: Any) -> str:
    """Pillow's word for the numbers in the file; PPM and SGI files say elsewhere that they have more than 8 bits."""
    for tile in tiles or ():
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        word = next((word for word in arguments if isinstance(word, str)), "")
        deep_ppm = tile[0] in ("ppm", "ppm_plain") and isinstance(arguments[-1], int) and arguments[-1] > 255
        return f"{word};16B" if deep_ppm or tile[0] == "SGI16" else word
    return ""


def pillow() -> Any:
    """``PIL.Image``; ValueError says how to get it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError("pictures need Pillow: pip install pillow") from error
    return Image
