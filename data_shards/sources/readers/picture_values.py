"""What the numbers of a decoded picture mean: grey or colour of 8 bits for every mode of Pillow, or class numbers.

* Whole numbers of more than 8 bits are scaled by their range, ``round(255 v / range)``: 65,535, or 4,095 of a TIFF file
  of 12 bits. Whole numbers of 32 bits have no range that a file states: refused.
* Numbers with a decimal point are scaled from 0..1; any other value, and NaN, is refused.
* Colour of 16 bits a channel keeps its upper 8, as every common decoder does: less than one level from the exact value.
* What is transparent is laid on a background, white or black. Fully opaque alpha changes nothing.
* CMYK, YCbCr and L*a*b* become red, green and blue; grey of colours is ``.299 R + .587 G + .114 B``.
* Embedded colour profiles are not applied.

Nothing is clipped. What was changed is counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from data_shards.sources.readers.picture_files import Decoded, PictureError, pillow

Background = Literal["white", "black"]
Count = Callable[[str], None]
GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
DEEP_COLOUR = re.compile(r"(?!BGR)[A-Za-z]+;16[LBN]?")  # 16 bits a channel; BGR;16 is 16 bits a pixel
LEVELS = {"L;2": 85, "L;4": 17}  # Pillow spreads numbers of 2 and 4 bits over 0 to 255, in steps of this


def eight_bit(decoded: Decoded, channels: int, background: Background, count: Count) -> Any:
    """Pillow's image in mode L (1 channel) or RGB (3), of numbers as the module's text says.

    Args:
        count: takes the name of what was done to this picture, e.g. ``flattened``.

    Raises:
        PictureError: numbers without a plain meaning.
    """
    picture, mode = decoded.picture, "L" if channels == 1 else "RGB"
    for what, done in (("turned", decoded.turned), ("first_of_several_frames", decoded.frames > 1)):
        if done:
            count(what)
    if _foreign_profile(picture.info.get("icc_profile")):
        count("colour_profile_not_applied")
    if decoded.signed:
        raise PictureError("it holds signed whole numbers, whose range no file states; save 8 or 16 bits, unsigned")
    if picture.mode in (*GREY_16, "I", "F"):
        count("reduced_to_8_bits")
        plain = _deep_grey(decoded)
    else:
        plain = picture
        if DEEP_COLOUR.fullmatch(decoded.raw):
            count("reduced_to_8_bits")
    alpha = _alpha(decoded)
    colour = plain if plain.mode in ("1", "L") else _rgb(plain)
    if alpha is not None and alpha.getextrema()[0] < 255:
        count("flattened")
        colour = pillow().composite(colour.convert("RGB"), pillow().new("RGB", colour.size, background), alpha)
    converted = colour.convert(mode)
    converted.info = {}
    return converted


def class_numbers(decoded: Decoded, count: Count) -> Any:
    """Pillow's image in mode L whose numbers are those of a mask: what the file stores, never scaled.

    A palette is not looked at, nor which of its colours is transparent: the places in it are the numbers.

    Raises:
        PictureError: colours, an alpha channel, numbers with a decimal point or outside 0 to 255, a lossy format.
    """
    picture = decoded.picture
    if decoded.format in ("JPEG", "MPO"):
        raise PictureError(f"a mask as {decoded.format} has lost its class numbers in compression; save it as PNG")
    if decoded.signed or picture.mode not in ("1", "L", "P", "I", *GREY_16):
        mode = f"signed {picture.mode}" if decoded.signed else picture.mode
        raise PictureError(f"a mask is a grey or palette picture of class numbers, and this one has mode {mode}")
    if decoded.white_is_zero:
        raise PictureError(
            "a mask is a picture of class numbers, and in this file 0 is said to be white; save it as PNG"
        )
    for what, done in (("turned", decoded.turned), ("first_of_several_frames", decoded.frames > 1)):
        if done:
            count(what)
    number_HW = np.asarray(picture).astype(np.int64)
    if decoded.raw in LEVELS and picture.mode == "L":
        number_HW //= LEVELS[decoded.raw]
    if number_HW.min() < 0 or number_HW.max() > 255:
        wrong = number_HW.min() if number_HW.min() < 0 else number_HW.max()
        raise PictureError(f"a mask holds class numbers from 0 to 255, and this one holds {wrong}")
    return pillow().fromarray(number_HW.astype(np.uint8))


def _deep_grey(decoded: Decoded) -> Any:
    """Mode L, of numbers of more than 8 bits."""
    picture = decoded.picture
    value_HW = np.asarray(picture).astype(np.float64)
    if picture.mode == "F":
        if not (value_HW.min() >= 0 and value_HW.max() <= 1):  # NaN compares as False
            what = "NaN" if np.isnan(value_HW).any() else f"{value_HW.min():g} to {value_HW.max():g}"
            raise PictureError(f"it holds numbers with a decimal point, which must be from 0 to 1, and are {what}")
        top = 1.0
    elif picture.mode == "I" and decoded.format not in ("PPM", "PNG"):  # Pillow gives these two as 0 to 65,535
        raise PictureError(
            f"it holds whole numbers of 32 bits, here {value_HW.min():.0f} to {value_HW.max():.0f}, and no range to "
            "scale them by; save it with 8 or 16 bits"
        )
    else:
        top = 4095.0 if decoded.raw == "I;12" else 65535.0
    if decoded.white_is_zero:  # Pillow turns such numbers around up to 8 bits only
        value_HW = top - value_HW
    return pillow().fromarray(np.rint(value_HW * (255 / top)).astype(np.uint8))


def _rgb(picture: Any) -> Any:
    """Mode RGB of any mode of 8 bits, without what is transparent."""
    if picture.mode in ("La", "RGBa"):  # times alpha
        picture = picture.convert(picture.mode.upper())
    if picture.mode in ("LA", "RGBA", "PA"):
        return picture.convert("RGBA").convert("RGB")
    if picture.mode == "LAB":
        return _lab_as_srgb(picture)
    opaque = picture.copy() if "transparency" in picture.info else picture
    opaque.info.pop("transparency", None)
    return opaque.convert("RGB")


def _lab_as_srgb(picture: Any) -> Any:
    """Mode RGB of mode LAB, colour by colour; Pillow's own way goes through a coarse table, 9 levels off."""
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    exact = ImageCms.buildTransform(lab, srgb, "LAB", "RGB", flags=ImageCms.Flags.NOOPTIMIZE)
    return exact.apply(picture)


def _alpha(decoded: Decoded) -> Any:
    """Mode L: how opaque each pixel is; None where the file says nothing about it."""
    picture = decoded.picture
    clear = picture.info.get("transparency")
    if clear is None or picture.mode in ("La", "LA", "PA", "RGBa", "RGBA"):
        return _alpha_channel(picture)
    if picture.mode == "P":
        return picture.convert("RGBA").getchannel("A")
    if picture.mode == "RGB" and DEEP_COLOUR.fullmatch(decoded.raw):
        raise PictureError("it declares one colour of 16 bits transparent; save it with an alpha channel")
    step = LEVELS.get(decoded.raw, 1)
    value_HW = np.asarray(picture.convert("L") if picture.mode == "1" else picture).astype(np.int64)
    is_clear_HW = value_HW == np.asarray(clear) * step
    if value_HW.ndim == 3:
        is_clear_HW = is_clear_HW.all(-1)
    return pillow().fromarray(np.where(is_clear_HW, 0, 255).astype(np.uint8))


def _alpha_channel(picture: Any) -> Any:
    if picture.mode == "P":
        return picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    named = {"La": "a", "RGBa": "a", "LA": "A", "PA": "A", "RGBA": "A"}
    return picture.getchannel(named[picture.mode]) if picture.mode in named else None


def _foreign_profile(profile: bytes | None) -> bool:
    """Whether a profile is there and is not that of sRGB, which is what pictures without one are taken for."""
    return bool(profile) and b"sRGB" not in profile.replace(b"\0", b"")  # type: ignore[union-attr]
