"""MM-IMDB and UPMC Food-101 as they are distributed, without anybody's preparation: files as records with fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.sources.image_text.fields import is_missing
from data_shards.sources.image_text.lines import Lines, Rows
from data_shards.sources.image_text.parts import PARTS
from data_shards.sources.readers.strict_json import BOM, parse_object, parse_text


@dataclass(frozen=True)
class Films:
    """MM-IMDB: ``dataset/ID.json`` of each film. The text is the longest of its plots, as in the authors' code."""

    folder: str
    films: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.films)

    def where(self, number: int) -> str:
        return str(self._path(number))

    def row(self, number: int) -> dict[str, Any]:
        film, path = self.films[number], self._path(number)
        if not path.is_file():
            raise ValueError(f"{self.folder}/split.json names {film!r}, and {path} is not there")
        told = parse_object(path.read_bytes().removeprefix(BOM), str(path))
        plots = told.get("plot")
        plots = plots if isinstance(plots, list) else [plots]
        wrong = [plot for plot in plots if not isinstance(plot, str) and not is_missing(plot)]
        text = wrong[0] if wrong else max((plot for plot in plots if plot), key=len, default=None)
        return {"id": film, "text": text, "label": told.get("genres"), "img": f"dataset/{film}.jpeg"}

    def _path(self, number: int) -> Path:
        return Path(self.folder) / "dataset" / f"{self.films[number]}.json"


@dataclass(frozen=True)
class Titles(Lines):
    """Food-101: lines ``image,title,class``. A title may hold commas: the image is the first field, the class the last.

    Attributes:
        part: folder of the pictures, ``images/PART/CLASS/IMAGE``.
    """

    part: str = ""

    def row(self, number: int) -> dict[str, Any]:
        line = parse_text(self.line(number), self.where(number)).rstrip("\r\n")
        image, comma, rest = line.partition(",")
        title, second, label = rest.rpartition(",")
        if not (image and comma and second and label.strip()):
            raise ValueError(f"{self.where(number)} is not of the form image,title,class: {line[:80]!r}")
        label = label.strip()
        name = image.rsplit(".", 1)[0]
        return {"id": name, "text": _unquoted(title), "label": label, "img": f"images/{self.part}/{label}/{image}"}


def mm_imdb_parts(folder: Path) -> dict[str, Rows] | None:
    """Parts of a folder with split.json, which lists the ids of each; None if it has none. Raises ValueError."""
    path = folder / "split.json"
    if not path.is_file():
        return None
    split = parse_object(path.read_bytes().removeprefix(BOM), str(path))
    parts: dict[str, Rows] = {}
    seen: dict[str, str] = {}
    for name, ids in split.items():
        part = next((part for part, names in PARTS.items() if name in names), None)
        if part is None or part in parts or not isinstance(ids, list):
            raise ValueError(f"{path}: {name!r} is not one of train, dev and test with a list of ids")
        for film in ids:
            if not isinstance(film, str) or not film.isalnum():
                raise ValueError(f"{path}: {name!r} lists {film!r}, which is no film's id")
            if film in seen:
                raise ValueError(f"{path}: film {film} is in {seen[film]} and in {name}")
            seen[film] = name
        parts[part] = Films(str(folder), tuple(ids))
    if "train" not in parts:
        raise ValueError(f"{path} has no list train")
    return parts


def food101_parts(folder: Path) -> dict[str, Rows] | None:
    """Parts of a folder with ``texts/train_titles.csv``, None if it has none."""
    paths = {part: folder / "texts" / f"{part}_titles.csv" for part in ("train", "test")}
    if not paths["train"].is_file():
        return None
    return {part: Titles(str(path), part) for part, path in paths.items() if path.is_file()}


def _unquoted(title: str) -> str:
    """Without the quotes around it that CSV asks for where a comma is inside; other quotes are the title's own."""
    inside = title[1:-1]
    if len(title) < 2 or not title.startswith('"') or not title.endswith('"') or '"' in inside.replace('""', ""):
        return title
    return inside.replace('""', '"')
