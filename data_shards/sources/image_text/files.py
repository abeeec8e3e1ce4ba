"""The files that a record names: its picture and its mask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from data_shards.sources.image_text.fields import LeftOut, Row, name_of, names_of
from data_shards.sources.image_text.options import ImageTextOptions, Layout
from data_shards.sources.readers.picture_files import PictureError
from data_shards.sources.readers.pictures import decode_mask, decode_picture

Decode = Callable[[Path, int, Counter[str]], np.ndarray]


class PictureFiles:
    """Reads them below one folder, and does what the options say about those that are not there or damaged."""

    def __init__(self, folder: Path, options: ImageTextOptions, layout: Layout) -> None:
        self.folder, self.options, self.layout = folder, options, layout

    def picture(self, row: Row, where: str, notes: Counter[str]) -> np.ndarray | None:
        """uint8 (3, size, size), None if there is none and that may be.

        Raises:
            ValueError: none, or a damaged one, where that is refused. LeftOut: where such records are dropped.
        """
        name = name_of(row, self.layout.image, where)
        if name is not None:
            return self._picture(name, where, notes)
        self._without_any(where, notes)
        return None

    def pictures(self, row: Row, where: str, notes: Counter[str]) -> dict[int, np.ndarray]:
        """Place -> uint8 (3, size, size), of the last so many, from 0; raises as `picture`."""
        names, most = names_of(row, self.layout.image, where), self.options.several or 1
        if not names:
            self._without_any(where, notes)
        notes["pictures_left_out"] += max(0, len(names) - most)
        made = {place: self._picture(name, where, notes) for place, name in enumerate(names[-most:])}
        return {place: picture for place, picture in made.items() if picture is not None}

    def _picture(self, name: str, where: str, notes: Counter[str]) -> np.ndarray | None:
        decode = partial(decode_picture, background=self.options.background)
        return self._read(self.layout.picture.format(value=name), "picture", where, decode, notes)

    def _without_any(self, where: str, notes: Counter[str]) -> None:
        told = (
            f"{where} has no picture (field {self.layout.image!r} is absent or null): say which field it is with "
            "-o image=...,"
        )
        self._without(told, "without_picture", notes)

    def mask(self, row: Row, where: str, notes: Counter[str]) -> np.ndarray | None:
        """uint8 (1, size, size), None if there is none; raises as `picture`."""
        name = name_of(row, self.options.mask, where) if self.options.mask else None
        if name is None:
            notes["without_mask"] += self.options.mask is not None
            return None
        return self._read(name, "mask", where, decode_mask, notes)

    def _read(self, name: str, what: str, where: str, decode: Decode, notes: Counter[str]) -> np.ndarray | None:
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise ValueError(f"{where}: {what} {name!r} is outside of {self.folder}")
        if not _is_there(path):
            self._without(f"{where}, {what} {name}: there is no such file;", f"{what}_file_not_there", notes)
            return None
        try:
            return decode(path, self.options.size, notes)
        except PictureError as error:
            if self.options.damaged == "refuse":
                raise ValueError(
                    f"{where}, {what} {name}: {error}; leave such records out with -o damaged=drop"
                ) from error
            raise LeftOut(f"damaged_{what}") from error

    def _without(self, told: str, note: str, notes: Counter[str]) -> None:
        if self.options.no_picture == "refuse":
            raise ValueError(
                f"{told} leave such records out with -o no_picture=drop, or keep them as text alone with "
                "-o no_picture=keep"
            )
        if self.options.no_picture == "drop":
            raise LeftOut(note)
        notes[note] += 1


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long for any file
        return False
