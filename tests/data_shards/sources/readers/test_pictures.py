"""Values of pictures that are deep, turned, transparent, animated or damaged, and of masks."""

from __future__ import annotations

import io
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from data_shards.sources.readers import picture_files
from data_shards.sources.readers.picture_files import PictureError
from data_shards.sources.readers.pictures import decode_mask, decode_picture, read_picture
from tests.data_shards.sources.readers.picture_bytes import png, saved, tiff

RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)
EXACT = np.floor(RAMP * (255 / 65535) + 0.5).astype(np.uint8)  # rounded, no half occurs: 65535 is odd


def grey(data: bytes, size: tuple[int, int], **options: Any) -> tuple[np.ndarray, Counter[str]]:
    """(H, W) of one channel, and what was counted."""
    notes: Counter[str] = Counter()
    return read_picture(data, "it", (1, size[1], size[0]), False, notes, **options)[0], notes


def colours(data: bytes, size: tuple[int, int], **options: Any) -> tuple[np.ndarray, Counter[str]]:
    """(H, W, 3), and what was counted."""
    notes: Counter[str] = Counter()
    return read_picture(data, "it", (3, size[1], size[0]), False, notes, **options).transpose(1, 2, 0), notes


@pytest.mark.parametrize(
    "data",
    [
        saved(RAMP, "PNG"),
        saved(RAMP, "TIFF"),
        saved(Image.fromarray(RAMP), "TIFF", compression="tiff_lzw"),
        tiff(RAMP.astype(">u2").tobytes(), 256, 256, 16, big=True),
        saved(Image.fromarray(RAMP), "JPEG2000", irreversible=False),
        b"P5 256 256 65535\n" + RAMP.astype(">u2").tobytes(),
        tiff((65535 - RAMP).tobytes(), 256, 256, 16, photometric=0),
    ],
    ids=["png", "tiff", "tiff lzw", "tiff big-endian", "jpeg 2000", "pgm", "tiff, 0 is white"],
)
def test_16_bit_grey_is_scaled_by_its_range(data: bytes) -> None:
    got, notes = grey(data, (256, 256))
    assert np.array_equal(got, EXACT) and got.mean() == 127.5 and len(np.unique(got)) == 256
    assert notes == {"pictures_reduced_to_8_bits": 1}
    assert (colours(data, (256, 256))[0] == EXACT[..., None]).all(), "grey is grey in colour, too"


def test_a_range_that_is_not_that_of_16_bits_is_the_files_own() -> None:
    twelve = np.array([[0, 4095], [2048, 16]])
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in twelve.tolist())
    assert grey(tiff(packed, 2, 2, 12), (2, 2))[0].tolist() == [[0, 255], [128, 1]]
    assert grey(b"P5 2 1 1000\n" + struct.pack(">HH", 1000, 500), (2, 1))[0].tolist() == [[255, 128]]
    assert grey(b"P5 2 1 15\n\x0f\x03", (2, 1))[0].tolist() == [[255, 51]]
    assert grey(png(0, 2, [bytes([0b00011011])], 4), (4, 1))[0].tolist() == [[0, 85, 170, 255]]
    assert grey(png(0, 4, [bytes([0x0F])], 2), (2, 1))[0].tolist() == [[0, 255]]


def test_colour_of_16_bits_keeps_its_upper_8() -> None:
    wide = np.stack([RAMP, RAMP[::-1], np.full_like(RAMP, 32768)], -1)
    got, notes = colours(png(2, 16, [row.astype(">u2").tobytes() for row in wide], 256), (256, 256))
    assert np.array_equal(got, wide >> 8) and np.abs(got - wide * (255 / 65535)).max() < 1
    assert notes == {"pictures_reduced_to_8_bits": 1}
    assert colours(b"P6 1 1 65535\n" + struct.pack(">HHH", 65535, 0, 32896), (1, 1))[0].tolist() == [[[255, 0, 128]]]


def test_numbers_with_a_decimal_point_are_from_0_to_1() -> None:
    ramp = np.linspace(0, 1, 4096).reshape(64, 64).astype(np.float32)
    got, notes = grey(saved(ramp, "TIFF"), (64, 64))
    assert np.array_equal(got, np.rint(ramp * 255.0)) and got.mean() == 127.5 and len(np.unique(got)) == 256
    assert notes == {"pictures_reduced_to_8_bits": 1}
    assert grey(tiff(ramp.tobytes(), 64, 64, 32, photometric=0, sample_format=3), (64, 64))[0][0, 0] == 255


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (saved(np.array([[0, 255.0]], np.float32), "TIFF"), r"must be from 0 to 1, and are 0 to 255$"),
        (saved(np.array([[-0.1, 0.5]], np.float32), "TIFF"), r"must be from 0 to 1, and are -0.1 to 0.5$"),
        (saved(np.array([[0, np.nan]], np.float32), "TIFF"), r"must be from 0 to 1, and are NaN$"),
        (saved(np.array([[0, np.inf]], np.float32), "TIFF"), r"must be from 0 to 1, and are 0 to inf$"),
        (saved(np.array([[7, 70000]], np.int32), "TIFF"), r"signed whole numbers"),
        (tiff(struct.pack("<II", 7, 70000), 2, 1, 32), r"whole numbers of 32 bits, here 7 to 70000, and no range"),
        (tiff(struct.pack("<hh", -5, 5), 2, 1, 16, sample_format=2), r"signed whole numbers, whose range no file"),
        (tiff(b"\xfe\x05", 2, 1, 8, sample_format=2), r"signed whole numbers"),
        (png(2, 16, [b"\0\1" * 6], 2, (b"tRNS", b"\0\1" * 3)), r"one colour of 16 bits transparent"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 1\n%%EndComments\n", r"is PostScript, which is a program"),
        (b"hello", r"no format that Pillow knows"),
        (b"", r"empty \(0 bytes\)"),
    ],
)
def test_numbers_without_a_plain_meaning_are_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        grey(data, (2, 1))
    assert str(caught.value).startswith("it cannot be read: ")


QUARTERS = np.array([[10, 80, 80], [150, 220, 220]], np.uint8)
# What a viewer shows of QUARTERS for each value of the EXIF tag, by the definition of where row 0 and column 0 are.
SHOWN = {
    1: [[10, 80, 80], [150, 220, 220]],
    2: [[80, 80, 10], [220, 220, 150]],
    3: [[220, 220, 150], [80, 80, 10]],
    4: [[150, 220, 220], [10, 80, 80]],
    5: [[10, 150], [80, 220], [80, 220]],
    6: [[150, 10], [220, 80], [220, 80]],
    7: [[220, 80], [220, 80], [150, 10]],
    8: [[80, 220], [80, 220], [10, 150]],
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF lzw", "AVIF", "16 bits"])
def test_pictures_are_upright_before_their_size_is_checked(kind: str, orientation: int) -> None:
    tag = Image.Exif()
    tag[0x0112] = orientation
    large = np.kron(QUARTERS, np.ones((32, 32), np.uint8))
    options: dict[str, Any] = {"exif": tag}
    if kind.startswith("TIFF"):
        options |= {"compression": "tiff_lzw"} if kind == "TIFF lzw" else {}
    picture = Image.fromarray(large.astype(np.uint16) * 257 if kind == "16 bits" else large)
    name = "PNG" if kind == "16 bits" else kind.split()[0]
    data = saved(picture, name, **options, **({"quality": 95} if name in ("JPEG", "AVIF") else {}))
    want = np.array(SHOWN[orientation])
    size = (32 * want.shape[1], 32 * want.shape[0])
    got, notes = grey(data, size)
    assert np.abs(got[16::32, 16::32].astype(int) - want).max() <= 3
    assert notes["pictures_turned"] == (orientation > 1)
    if want.shape != (2, 3):
        with pytest.raises(ValueError, match=r"it is 64 x 96 pixels, not 96 x 64; set resize: true"):
            grey(data, (96, 64))


def test_a_turned_photograph_has_its_upper_half_at_the_right() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32], pixels[32:] = [255, 0, 0], [0, 0, 255]
    tag = Image.Exif()
    tag[0x0112] = 6
    got, notes = colours(saved(pixels, "JPEG", exif=tag, quality=95), (64, 64))
    assert np.abs(got[:, 40:].astype(int) - [255, 0, 0]).max() < 4 and notes == {"pictures_turned": 1}
    assert np.abs(got[:, :24].astype(int) - [0, 0, 255]).max() < 4
    square = decode_picture(saved(pixels, "JPEG", exif=tag, quality=95), 64, notes)
    assert np.array_equal(square.transpose(1, 2, 0), got)


def test_what_is_transparent_is_laid_on_white_or_black() -> None:
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., 0], pixels[:32, :, 3], pixels[32:40, :, 3] = 255, 255, 51
    data = saved(pixels, "PNG")
    got, notes = colours(data, (64, 64))
    assert (got[:32] == [255, 0, 0]).all() and (got[40:] == 255).all() and notes == {"pictures_flattened": 1}
    assert (got[32:40] == [255, 204, 204]).all()
    black, _ = colours(data, (64, 64), background="black")
    assert (black[:32] == [255, 0, 0]).all() and (black[40:] == 0).all() and (black[32:40] == [51, 0, 0]).all()
    pixels[..., 3] = 255
    assert colours(saved(pixels, "PNG"), (64, 64))[1] == {}, "fully opaque alpha changes nothing"


@pytest.mark.parametrize(
    ("data", "want"),
    [
        (png(0, 8, [bytes([9, 10])], 2, (b"tRNS", b"\0\x09")), [255, 10]),
        (png(0, 2, [bytes([0b01100000])], 2, (b"tRNS", b"\0\1")), [255, 170]),
        (png(0, 1, [bytes([0b01000000])], 2, (b"tRNS", b"\0\0")), [255, 255]),
        (png(0, 16, [struct.pack(">HH", 515, 257)], 2, (b"tRNS", struct.pack(">H", 515))), [255, 1]),
        (png(2, 8, [bytes([9, 9, 9, 7, 7, 7])], 2, (b"tRNS", b"\0\x09" * 3)), [255, 7]),
        (png(3, 8, [bytes([0, 1])], 2, (b"PLTE", bytes([4, 4, 4, 8, 8, 8])), (b"tRNS", b"\0")), [255, 8]),
        (png(3, 8, [bytes([0, 1])], 2, (b"PLTE", bytes([4, 4, 4, 8, 8, 8])), (b"tRNS", b"\xff\x33")), [4, 206]),
        (png(4, 16, [struct.pack(">HHHH", 0, 0, 0x1234, 65535)], 2), [255, 0x12]),
    ],
    ids=["8 bits", "2 bits", "1 bit", "16 bits", "colour", "palette", "palette with alphas", "16 bits and alpha"],
)
def test_every_way_of_a_png_file_to_be_transparent(data: bytes, want: list[int]) -> None:
    got, notes = grey(data, (2, 1))
    assert got.tolist() == [want] and notes["pictures_flattened"] == 1
    assert (colours(data, (2, 1))[0] == np.array(want)[None, :, None]).all()


def test_the_first_of_several_frames_is_taken_and_counted() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "PNG", "TIFF", "WEBP"):
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        got, notes = colours(data, (8, 8))
        assert (got == [255, 0, 0]).all() and notes == {"pictures_first_of_several_frames": 1}, kind
    assert colours(saved(frames[1], "GIF"), (8, 8))[1] == {}


def test_cmyk_of_photographs_is_inverted_as_adobe_writes_it_and_plain_in_tiff() -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        got, _ = colours(saved(ink, kind), (16, 16))
        assert np.abs(got.astype(int) - [255, 0, 0]).max() <= 2, kind
    assert (grey(saved(Image.new("CMYK", (4, 4), (0, 0, 0, 51)), "TIFF"), (4, 4))[0] == 204).all()


def test_colour_profiles_are_not_applied_and_counted_unless_they_are_those_of_srgb() -> None:
    lab, srgb = (ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes() for name in ("LAB", "sRGB"))
    pixels = np.full((4, 4, 3), (200, 100, 50), np.uint8)
    for profile, counted in ((lab, 1), (srgb, 0)):
        got, notes = colours(saved(pixels, "PNG", icc_profile=profile), (4, 4))
        assert np.array_equal(got, pixels) and notes["pictures_colour_profile_not_applied"] == counted


def test_damage_is_refused_wherever_a_file_ends(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM"):
        pixels = rng.integers(0, 256, (24, 24, 3)).astype(np.uint8)
        data = saved(pixels, kind)
        for end in (1, 8, len(data) // 4, len(data) // 2, len(data) * 3 // 4):
            with pytest.raises(PictureError, match=r"cannot be decoded"):
                decode_picture(data[:end], 24, Counter())
    with pytest.raises(ValueError, match=r"^it cannot be read: there is no such file$"):
        read_picture(tmp_path / "gone.png", "it", (3, 2, 2), True, Counter())
    with pytest.raises(ValueError, match=r"^it cannot be read: is not a file$"):
        read_picture(tmp_path, "it", (3, 2, 2), True, Counter())


def test_any_byte_may_be_wrong_and_the_answer_is_a_picture_or_a_sentence() -> None:
    rng = np.random.default_rng(1)
    tag = Image.Exif()
    tag[0x0112] = 6
    pixels = rng.integers(0, 256, (9, 7, 4)).astype(np.uint8)
    samples = [
        saved(pixels, "PNG", exif=tag),
        saved(pixels[..., :3], "JPEG", exif=tag),
        saved(pixels, "TIFF", exif=tag),
    ]
    samples += [saved(pixels[..., :3], "GIF"), saved(RAMP[:4, :4], "PNG"), saved(pixels, "WEBP", exif=tag)]
    refused = 0
    for data in samples:
        for _ in range(150):
            broken = bytearray(data)
            for place in rng.integers(0, len(data), rng.integers(1, 4)):
                broken[place] = rng.integers(0, 256)
            try:
                assert decode_picture(bytes(broken), 8, Counter()).shape == (3, 8, 8)
            except PictureError:
                refused += 1
    assert refused > 100


def test_absurd_sizes_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = png(0, 8, [b""], 60_000)
    header = huge.replace(struct.pack(">II", 60_000, 1), struct.pack(">II", 60_000, 60_000))
    with pytest.raises(PictureError, match=r"cannot be decoded"):  # the header's checksum
        decode_picture(header, 8, Counter())
    monkeypatch.setattr(picture_files, "MAX_PIXELS", 100)
    with pytest.raises(PictureError, match=r"11 x 10 pixels, at most 100 are read"):
        decode_picture(saved(np.zeros((10, 11), np.uint8), "PNG"), 8, Counter())
    thin = saved(np.zeros((1, 400), np.uint8), "PNG")
    monkeypatch.undo()
    assert decode_picture(thin, 64, Counter()).shape == (3, 64, 64)
    with pytest.raises(PictureError, match=r"400 x 1 pixels are too long and thin for a square of 2048"):
        decode_picture(thin, 2048, Counter())


def mask(data: bytes, size: int = 2) -> tuple[list[list[int]], Counter[str]]:
    notes: Counter[str] = Counter()
    return decode_mask(data, size, notes)[0].tolist(), notes


def test_masks_keep_their_numbers_at_every_depth() -> None:
    numbers = np.array([[0, 1], [2, 3]])
    for data in (
        saved(numbers.astype(np.uint8), "PNG"),
        saved(numbers.astype(np.uint16), "PNG"),
        saved(numbers.astype(np.uint16), "TIFF"),
        tiff(numbers.astype(">u2").tobytes(), 2, 2, 16, big=True),
        tiff(numbers.astype("<u4").tobytes(), 2, 2, 32),
        saved(numbers.astype(np.uint8), "BMP"),
        png(0, 2, [bytes([0b00010000]), bytes([0b10110000])], 2),
        png(0, 4, [bytes([0x01]), bytes([0x23])], 2),
        png(3, 4, [bytes([0x01]), bytes([0x23])], 2, (b"PLTE", bytes(range(12, 0, -1))), (b"tRNS", b"\0")),
    ):
        assert mask(data) == ([[0, 1], [2, 3]], {})
    assert mask(png(0, 1, [bytes([0b01000000]), bytes([0b10000000])], 2))[0] == [[0, 1], [1, 0]]
    assert mask(saved(np.array([[0, 255], [1, 7]], np.uint16), "PNG"))[0] == [[0, 255], [1, 7]]


def test_masks_are_turned_with_their_pictures() -> None:
    tag = Image.Exif()
    tag[0x0112] = 6
    assert mask(saved(np.array([[1, 2], [3, 4]], np.uint8), "PNG", exif=tag)) == ([[3, 1], [4, 2]], {"masks_turned": 1})


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (saved(np.array([[0, 256]], np.uint16), "PNG"), r"class numbers from 0 to 255, and this one holds 256"),
        (saved(np.array([[0, -1]], np.int32), "TIFF"), r"this one has mode signed I"),
        (saved(np.zeros((2, 2), np.float32), "TIFF"), r"this one has mode F"),
        (saved(np.zeros((2, 2, 3), np.uint8), "PNG"), r"this one has mode RGB"),
        (saved(Image.new("LA", (2, 2)), "PNG"), r"this one has mode LA"),
        (saved(np.zeros((8, 8), np.uint8), "JPEG"), r"a mask as JPEG has lost its class numbers"),
        (tiff(b"\0\1", 2, 1, 8, photometric=0), r"0 is said to be white"),
    ],
)
def test_what_is_no_mask_is_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(PictureError, match=sentence):
        mask(data)


def test_a_file_and_its_bytes_are_the_same(tmp_path: Path) -> None:
    data = saved(np.random.default_rng(2).integers(0, 256, (5, 6, 4)).astype(np.uint8), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    found = [read_picture(source, "it", (3, 4, 4), True, Counter()) for source in (tmp_path / "a.png", data)]
    assert np.array_equal(*found) and found[0].shape == (3, 4, 4)
    with Image.open(io.BytesIO(data)) as picture:
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        want = np.asarray(white.convert("RGB").resize((4, 4), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(found[0].astype(int) - want).max() <= 1
