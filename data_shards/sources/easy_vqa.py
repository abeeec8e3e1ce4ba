"""easy-VQA: questions about generated pictures of one shape each (MIT licence, github.com/vzhou842/easy-VQA).

5,000 pictures of 64 x 64 pixels and about 48,000 questions with 13 answers. The words of a question alone give two
thirds of the answers, the picture is needed for the rest. Read from the published archive, or from its unpacked folder:
``data/{train,test}/questions.json`` = [question, answer, picture], ``data/{train,test}/images/ID.png``.

Beside the answer every record has targets of one modality alone, for pretraining a tower: the colour and the shape of
the picture (as far as any question about it gives them away) and the words of the question.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from data_shards.paths import absolute_path
from data_shards.permutation import permutation
from data_shards.records.record import Record
from data_shards.records.schema import DatasetSchema, ModalitySpec, TaskSpec
from data_shards.sources.base import Source, SourceOptions, hashed_part
from data_shards.sources.readers.picture_files import PictureError
from data_shards.sources.readers.pictures import decode_picture

ARCHIVE = "easy_vqa_data.tar.gz"
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
MAX_FILE = 1 << 24
WANTED = re.compile(r"(?:data/)?((?:train|test)/questions\.json|(?:train|test)/images/\d+\.png|answers\.txt)")
_UNIT_RECORDS = 2_000
LONGEST = 128


class EasyVQAOptions(SourceOptions):
    """Options of this source."""

    path: str = Field(description=f"folder with {ARCHIVE} (or the archive itself, or its unpacked data folder)")
    size: int = Field(64, ge=8, le=1024, description="side of a picture, in pixels")
    val: float = Field(0.1, gt=0, lt=1, description="share of the training pictures that make the part val")
    seed: int = Field(0, description="seed of the order of records and of the part val")
    records: int | None = Field(None, ge=1, description="only so many questions, evenly of both files; null = all")


class EasyVQA(Source):
    """Questions as records; see the module's text. Records are in random order, so neighbours share no picture."""

    Options: ClassVar[type[SourceOptions]] = EasyVQAOptions

    def __init__(self, options: EasyVQAOptions) -> None:
        super().__init__(options)
        self.place, self.size, self.val, self.seed = _find(options.path), options.size, options.val, options.seed
        self.limit = options.records
        self.answers = tuple(sorted(_load(self.place)["answers.txt"].decode().split()))
        self.words = tuple(
            sorted({word for question, _, _ in _questions(self.place, "train") for word in _words(question)})
        )
        self.schema = _schema(self.size, self.answers, self.words)

    def units(self) -> list[tuple[int, int]]:
        """[start, end) of the shuffled questions of both files."""
        count = len(self._order)
        return [(start, min(start + _UNIT_RECORDS, count)) for start in range(0, count, _UNIT_RECORDS)]

    def read(self, unit: tuple[int, int], notes: Counter[str]) -> Iterator[Record]:
        """Records of one unit."""
        known = {part: _facts(self.place, part) for part in ("train", "test")}
        for part, number in self._order[slice(*unit)]:
            question, answer, picture = _questions(self.place, part)[number]
            if answer not in self.answers:
                raise ValueError(f"question {number} of {part} has the answer {answer!r}, which is not in answers.txt")
            targets: dict[str, np.ndarray | float | None] = {
                "answer": float(self.answers.index(answer)),
                "colour": known[part].get((picture, "colour")),
                "shape": known[part].get((picture, "shape")),
                "words": np.array([word in _words(question) for word in self.words], np.float32),
            }
            values: dict[str, Any] = {"image": self._picture(part, picture, notes), "question": question}
            home = part
            if part == "train":
                home = hashed_part(f"picture {picture}", (("train", 1 - self.val), ("val", self.val)), str(self.seed))
            notes[f"questions_{home}"] += 1
            yield Record(f"{part}-{number:05d}", values, targets, {"default": home}, group=f"{part}-picture-{picture}")

    def _picture(self, part: str, picture: int, notes: Counter[str]) -> np.ndarray:
        name = f"{part}/images/{picture}.png"
        files = _load(self.place)
        if name not in files:
            raise ValueError(f"{self.place} has a question about {name}, and no such picture")
        try:
            return decode_picture(files[name], self.size, notes)
        except PictureError as error:
            raise ValueError(f"{self.place}, {name}: {error}") from error

    @cached_property
    def _order(self) -> list[tuple[str, int]]:
        places = [(part, n) for part in ("train", "test") for n in range(len(_questions(self.place, part)))]
        return [places[i] for i in permutation(len(places), self.seed, "easy_vqa").tolist()][: self.limit]


def _schema(size: int, answers: tuple[str, ...], words: tuple[str, ...]) -> DatasetSchema:
    modalities = (
        ModalitySpec("image", "image", shape=(3, size, size), dtype="uint8"),
        ModalitySpec("question", "text", max_length=LONGEST),
    )
    tasks = (
        TaskSpec("answer", "multiclass", classes=answers),
        TaskSpec("colour", "multiclass", classes=COLOURS, description="of the shape, where a question gives it away"),
        TaskSpec("shape", "multiclass", classes=SHAPES, description="where a question gives it away"),
        TaskSpec("words", "multilabel", classes=words, description="words of the question"),
    )
    return DatasetSchema("easy_vqa", modalities, tasks)


def _words(question: str) -> list[str]:
    return re.findall(r"[a-z]+", question.lower())


def _find(path: str) -> str:
    place = absolute_path(path)
    for found in (place / ARCHIVE, place / "data" / "train" / "questions.json", place / "train" / "questions.json"):
        if found.is_file():
            return str(found if found.name == ARCHIVE else found.parent.parent)
    if place.is_file():
        return str(place)
    raise ValueError(f"{path} holds neither {ARCHIVE} nor data/train/questions.json: is it easy-VQA?")


@lru_cache(maxsize=1)
def _load(place: str) -> dict[str, bytes]:
    """File name below ``data/`` -> content. Only plain files with expected names are read, nothing is unpacked."""
    path, files = Path(place), {}
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            match = WANTED.fullmatch(file.relative_to(path).as_posix())
            if match and file.is_file():
                files[match[1]] = file.read_bytes()
    else:
        try:
            with tarfile.open(path, "r:gz") as archive:
                files = _members(archive, place)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"{place} is not a readable .tar.gz archive: {error}") from error
    for needed in ("train/questions.json", "test/questions.json", "answers.txt"):
        if needed not in files:
            raise ValueError(f"{place} has no data/{needed}")
    return files


def _members(archive: tarfile.TarFile, place: str) -> dict[str, bytes]:
    files = {}
    for member in archive:
        match = WANTED.fullmatch(member.name.removeprefix("./"))
        if match is None or not member.isfile():
            continue
        if member.size > MAX_FILE:
            raise ValueError(f"{place}: {member.name} claims {member.size} bytes, at most {MAX_FILE} are plausible")
        stream = archive.extractfile(member)
        assert stream is not None, "a plain file has content"
        files[match[1]] = stream.read()
    return files


@lru_cache(maxsize=4)
def _questions(place: str, part: str) -> list[tuple[str, str, int]]:
    where = f"{place}, data/{part}/questions.json"
    try:
        rows = json.loads(_load(place)[f"{part}/questions.json"])
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    for number, row in enumerate(rows if isinstance(rows, list) else [rows]):
        if not isinstance(row, list) or [type(cell) for cell in row] != [str, str, int]:
            raise ValueError(f"{where}: number {number} is {str(row)[:80]}, not [question, answer, picture's number]")
    return [(question, answer, picture) for question, answer, picture in rows]


@lru_cache(maxsize=4)
def _facts(place: str, part: str) -> dict[tuple[int, str], float]:
    """(picture, colour or shape) -> class number, from questions whose answer names it."""
    facts = {}
    for _, answer, picture in _questions(place, part):
        for kind, names in (("colour", COLOURS), ("shape", SHAPES)):
            if answer in names:
                facts[picture, kind] = float(names.index(answer))
    return facts
