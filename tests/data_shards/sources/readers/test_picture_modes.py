"""Every mode of Pillow against its formula, written out in NumPy, on random pixels, backgrounds and orders of bytes."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_shards.sources.readers.picture_files import Decoded
from data_shards.sources.readers.picture_values import Background, eight_bit

H, W = 5, 7
Reference = tuple[Image.Image, np.ndarray, np.ndarray]  # picture, colour [H, W, 3] in 0..255, opacity [H, W] in 0..1
NATIVE = "<" if sys.byteorder == "little" else ">"


def pixels(rng: np.random.Generator, bands: int) -> np.ndarray:
    """uint8 [H, W, bands], with many pixels at both ends of the range."""
    plain = rng.integers(0, 256, (H, W, bands))
    return np.where(rng.random((H, W, bands)) < 0.2, rng.choice([0, 255], (H, W, bands)), plain).astype(np.uint8)


def image(mode: str, data: np.ndarray) -> Image.Image:
    return Image.frombytes(mode, (W, H), data.tobytes())


def grey3(value_HW: np.ndarray) -> np.ndarray:
    return np.repeat(value_HW[..., None].astype(float), 3, -1)


def one_bit(rng: np.random.Generator) -> Reference:
    bits = rng.integers(0, 2, (H, W)).astype(bool)
    return Image.fromarray(bits), grey3(bits * 255), np.ones((H, W))


def grey(rng: np.random.Generator) -> Reference:
    data = pixels(rng, 1)
    return image("L", data), grey3(data[..., 0]), np.ones((H, W))


def grey_alpha(mode: str) -> Callable[[np.random.Generator], Reference]:
    def make(rng: np.random.Generator) -> Reference:
        data = pixels(rng, 2)
        if mode == "La":  # grey times alpha
            data[..., 0] = np.minimum(data[..., 0], data[..., 1])
            straight = np.divide(data[..., 0] * 255.0, data[..., 1], where=data[..., 1] > 0, out=np.zeros((H, W)))
            return image("La", data), grey3(straight), data[..., 1] / 255
        return image(mode, data), grey3(data[..., 0]), data[..., 1] / 255

    return make


def palette(mode: str, clear: str = "") -> Callable[[np.random.Generator], Reference]:
    def make(rng: np.random.Generator) -> Reference:
        table, place_HW = pixels(rng, 3).reshape(-1, 3), rng.integers(0, H * W, (H, W)).astype(np.uint8)
        alpha_HW = rng.integers(0, 256, (H, W)).astype(np.uint8)
        picture = image("P", place_HW) if mode == "P" else image("PA", np.stack([place_HW, alpha_HW], -1))
        picture.putpalette(table.tobytes())
        opacity = np.ones((H, W)) if mode == "P" else alpha_HW / 255
        if clear == "one":
            picture.info["transparency"] = 3
            opacity = (place_HW != 3) * 1.0
        if clear == "each":
            alphas = rng.integers(0, 256, len(table)).astype(np.uint8)
            picture.info["transparency"] = alphas.tobytes()
            opacity = alphas[place_HW] / 255
        return picture, table[place_HW].astype(float), opacity

    return make


def colour(mode: str) -> Callable[[np.random.Generator], Reference]:
    def make(rng: np.random.Generator) -> Reference:
        data = pixels(rng, 3 if mode in ("RGB", "YCbCr", "HSV", "LAB") else 4)
        a, b, c, d = (data[..., n].astype(float) if n < data.shape[-1] else np.full((H, W), 255.0) for n in range(4))
        picture, opacity, value = image(mode, data), np.ones((H, W)), np.stack([a, b, c], -1)
        if mode == "RGBA":
            opacity = d / 255
        elif mode == "RGBa":
            data[..., :3] = np.minimum(data[..., :3], data[..., 3:])
            picture, opacity = image(mode, data), d / 255
            value = np.divide(data[..., :3] * 255.0, d[..., None], where=d[..., None] > 0, out=np.zeros((H, W, 3)))
        elif mode == "CMYK":
            value = (255 - value) * (255 - d)[..., None] / 255
        elif mode == "YCbCr":  # ITU-T T.871
            value = np.stack(
                [a + 1.402 * (c - 128), a - 0.344136 * (b - 128) - 0.714136 * (c - 128), a + 1.772 * (b - 128)], -1
            ).clip(0, 255)
        elif mode == "HSV":
            value = hsv(a / 255, b / 255, c)
        elif mode == "LAB":
            data[..., 0] = 40 + data[..., 0] % 180  # within what sRGB can show
            data[..., 1:] = data[..., 1:] % 31 - 15
            picture = image(mode, data)
            value = lab(data[..., 0] * (100 / 255), *data[..., 1:].astype(np.int8).transpose(2, 0, 1).astype(float))
        return picture, value, opacity

    return make


def hsv(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The hexagon of Smith (1978)."""
    channels = []
    for shift in (5, 3, 1):
        k = (shift + hue * 6) % 6
        channels.append(value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1))
    return np.stack(channels, -1)


def lab(light: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """CIE L*a*b* with white D50 to sRGB (IEC 61966-2-1, adapted by Bradford)."""
    y = (light + 16) / 116
    f = np.stack([y + a / 500, y, y - b / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1.0, 0.8249]
    to_rgb = [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
    linear = np.clip(xyz @ np.array(to_rgb).T, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def deep(mode: str) -> Callable[[np.random.Generator], Reference]:
    def make(rng: np.random.Generator) -> Reference:
        order = {"I;16": "<", "I;16L": "<", "I;16B": ">", "I;16N": NATIVE}[mode]
        value_HW = rng.integers(0, 65536, (H, W))
        return image(mode, value_HW.astype(f"{order}u2")), grey3(value_HW * (255 / 65535)), np.ones((H, W))

    return make


def wide(rng: np.random.Generator) -> Reference:
    value_HW = rng.integers(0, 65536, (H, W)).astype(np.int32)  # as Pillow gives a PGM file
    return Image.fromarray(value_HW), grey3(value_HW * (255 / 65535)), np.ones((H, W))


def decimal(rng: np.random.Generator) -> Reference:
    value_HW = rng.random((H, W), np.float32)
    return Image.fromarray(value_HW), grey3(value_HW * 255.0), np.ones((H, W))


MODES: dict[str, Callable[[np.random.Generator], Reference]] = {
    "1": one_bit, "L": grey, "La": grey_alpha("La"), "LA": grey_alpha("LA"), "P": palette("P"), "PA": palette("PA"),
    "P, one clear": palette("P", "one"), "P, alphas": palette("P", "each"), "I": wide, "F": decimal,
    **{mode: colour(mode) for mode in ("RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")},
    **{mode: deep(mode) for mode in ("I;16", "I;16L", "I;16B", "I;16N")},
}  # fmt: skip
# Levels that Pillow's whole numbers may be off: it rounds on the way.
NEAR = {"HSV": 3, "LAB": 2, "CMYK": 1, "YCbCr": 2, "La": 2, "RGBa": 2}


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), background=st.sampled_from(["white", "black"]))
def test_every_mode_is_its_formula(mode: str, seed: int, background: Background) -> None:
    picture, value_HWC, opacity_HW = MODES[mode](np.random.default_rng(seed))
    counted: Counter[str] = Counter()
    decoded = Decoded(picture, "PPM" if mode == "I" else "TIFF")
    ground = 255.0 if background == "white" else 0.0
    want = value_HWC * opacity_HW[..., None] + ground * (1 - opacity_HW[..., None])
    near = NEAR.get(mode, 0) + 0.5 + (0.51 if (opacity_HW < 1).any() else 0)
    got = np.asarray(eight_bit(decoded, 3, background, lambda what: counted.update([what]))).astype(float)
    assert np.abs(got - want).max() <= near + 1e-6
    one = np.asarray(eight_bit(decoded, 1, background, lambda what: None)).astype(float)
    assert np.abs(one - got @ [0.299, 0.587, 0.114]).max() <= 0.51, "grey is the weighted mean of the colours"
    assert counted["flattened"] == (opacity_HW < 1).any()
    assert counted["reduced_to_8_bits"] == (mode in ("I", "F") or mode.startswith("I;16"))


def test_no_mode_of_pillow_is_left_out() -> None:
    assert set(Image.MODES) <= {mode.split(",")[0] for mode in MODES}
