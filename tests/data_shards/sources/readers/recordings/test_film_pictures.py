"""Films with a moving square: where it is at what time."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards.sources.readers.recordings.film_pictures import film_frames
from tests.data_shards.sources.readers.recordings.build import lay_film, square, tone

MOVING = [square(number) for number in range(28)]  # at 10 a second: the left edge is at 20 times the second


def seen(source: Path | bytes, frames: Any, *stretch: Any) -> list[tuple[float, int, int]]:
    """(second, left edge, upper edge) of the square in each picture."""
    found = []
    for frame in film_frames(source, frames, *stretch):
        rows, columns = np.nonzero(np.asarray(frame.picture.picture.convert("L")) > 128)
        found.append((float(frame.time), int(columns.min()), int(rows.min())))
    return found


@pytest.mark.parametrize(
    ("name", "codec", "form"),
    [
        ("x.mkv", "ffv1", "bgr0"), ("x.mp4", "libx264", "yuv420p"), ("x.mov", "mpeg4", "yuv420p"),
        ("x.avi", "mjpeg", "yuvj420p"), ("x.webm", "libvpx", "yuv420p"),
    ],
)  # fmt: skip
def test_the_square_is_where_it_was_at_that_time(tmp_path: Path, name: str, codec: str, form: str) -> None:
    film = lay_film(tmp_path / name, MOVING, codec=codec, form=form)
    every = [(0.0, 0, 16), (0.5, 10, 16), (1.0, 20, 16), (1.5, 30, 16), (2.0, 40, 16), (2.5, 50, 16)]
    assert seen(film, Fraction("0.5")) == every == seen(film.read_bytes(), Fraction("0.5"))
    assert seen(film, Fraction("0.25"), Fraction(1), Fraction("1.75")) == [
        (0.0, 20, 16), (0.25, 24, 16), (0.5, 30, 16)
    ], "between two pictures the earlier one is seen, and times are those since the start of the stretch"  # fmt: skip
    assert seen(film, Fraction("0.9"), Fraction("0.9")) == [(0.0, 18, 16), (0.9, 36, 16), (1.8, 54, 16)]
    assert seen(film, Fraction(100)) == [(0.0, 0, 16)]
    assert seen(film, Fraction("2.75")) == [(0.0, 0, 16), (2.75, 54, 16)], "the last one is seen until the film ends"
    keys = seen(film, "key")
    assert [key[:2] for key in keys] == [(n, 20 * n) for n in range(3)] or len(keys) == 28
    inner = [key[1:] for key in keys if 1 <= key[0] < 2.0]
    assert [key[1:] for key in seen(film, "key", Fraction(1), Fraction(2))] == inner
    assert seen(film, "key", Fraction(1), Fraction(2))[0][0] == 0


def test_the_film_begins_with_whatever_begins_first(tmp_path: Path) -> None:
    heard_first = lay_film(tmp_path / "x.mkv", MOVING[:10], sound_L=tone(440, 2, 8000), pictures_from=7)
    assert seen(heard_first, Fraction("0.5")) == [(1.0, 6, 16), (1.5, 16, 16)], "nothing is seen before second 0.7"
    late = lay_film(tmp_path / "y.mkv", MOVING[:10], pictures_from=7)
    assert seen(late, Fraction("0.5")) == [(0.0, 0, 16), (0.5, 10, 16)]


@pytest.mark.parametrize(("turns", "edge"), [(0, (20, 16)), (1, (24, 20)), (2, (36, 24)), (3, (16, 36))])
def test_a_film_that_was_taken_with_a_turned_camera_is_upright(
    tmp_path: Path, turns: int, edge: tuple[int, int]
) -> None:
    """The matrix in the header of an .mp4: a quarter turn clockwise, twice, three times."""
    film = lay_film(tmp_path / "x.mp4", MOVING[10:12], codec="libx264", form="yuv444p")
    cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][turns]
    content = bytearray(film.read_bytes())
    place = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version, times and numbers, reserved, layer and volume
    matrix = [cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30]
    content[place : place + 36] = struct.pack(">9i", *matrix)
    (frame,) = film_frames(bytes(content), Fraction(1))
    picture = np.asarray(frame.picture.picture.convert("L"))
    assert picture.shape == ((48, 64) if turns % 2 == 0 else (64, 48)) and frame.picture.turned == bool(turns)
    rows, columns = np.nonzero(picture > 128)
    assert (columns.min(), rows.min()) == edge


@pytest.mark.parametrize(
    ("stretch", "words"),
    [
        ((Fraction(1), Fraction(4)), "^the stretch to second 4 goes on after its end, which is 2.8$"),
        ((Fraction(3), None), "^no picture of it lies from second 3 on$"),
        (
            (Fraction(3), Fraction(4)),
            "^no picture of it lies from second 3 to 4$|^the stretch to second 4 goes",
        ),
    ],
)
def test_a_stretch_that_the_film_does_not_have(tmp_path: Path, stretch: Any, words: str) -> None:
    film = lay_film(tmp_path / "x.mkv", MOVING)
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        list(film_frames(film, Fraction("0.5"), *stretch))


def test_a_sound_alone_has_no_pictures_and_pictures_may_be_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = lay_film(tmp_path / "x.mkv", MOVING[:3])
    for place in ("container", "film_pictures"):
        monkeypatch.setattr(f"data_shards.sources.readers.recordings.{place}.MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(ValueError, match=r"64 x 48 pixels, at most 3071 are read|^it is a damaged film"):
        list(film_frames(film, "key"))
