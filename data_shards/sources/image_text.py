"""Pictures with text and labels, as research data sets come: a folder with a JSON line per record and files beside it.

Which field is what is an option, and presets know the layouts in which three data sets are distributed:

* ``food101``: UPMC Food-101 (Wang et al. 2015) as prepared for multimodal bitransformers: ``{train,dev,test}.jsonl``
  with id, label, text, img; 101 classes. The text may be page text or a title, which give different accuracies.
* ``mm_imdb``: MM-IMDB (Arevalo et al. 2017): id, text (a plot), img, label (a list); 23 genres.
* ``snli_ve``: SNLI-VE (Xie et al. 2019): ``snli_ve_{train,dev,test}.jsonl`` with gold_label, sentence2 (the hypothesis)
  and Flickr30K_ID, whose picture, the premise, is in ``Flickr30K/flickr30k_images``. Pairs without a gold label are
  left out.

Records are packed in random order: official test files are sorted by class, and neighbours should tell nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from data_shards.paths import absolute_path
from data_shards.permutation import permutation
from data_shards.records.record import Record
from data_shards.records.schema import DatasetSchema, ModalitySpec, TaskSpec
from data_shards.sources.base import Source, SourceOptions
from data_shards.sources.readers.picture_files import PictureError
from data_shards.sources.readers.pictures import decode_mask, decode_picture

PARTS = {"train": ("train",), "val": ("val", "dev", "valid"), "test": ("test",)}
PRESETS: dict[str, dict[str, Any]] = {
    "food101": {"image": "img", "text": "text", "label": "label", "name": "food101"},
    "mm_imdb": {"image": "img", "text": "text", "label": "label", "kind": "multilabel", "name": "mm_imdb"},
    "snli_ve": {
        "image": "Flickr30K_ID",
        "text": "sentence2",
        "label": "gold_label",
        "file": "snli_ve_{part}.jsonl",
        "picture": "Flickr30K/flickr30k_images/{value}.jpg",
        "no_label": "-",
        "name": "snli_ve",
    },
}
_UNIT_RECORDS = 1_000


class ImageTextOptions(SourceOptions):
    """Options of this source. A preset fills in what is not given."""

    path: str = Field(description="folder with one .jsonl file per part, and the pictures below it")
    preset: Literal["food101", "mm_imdb", "snli_ve"] | None = Field(None, description="a known layout")
    name: str | None = Field(None, description="name of the data set; default: the preset's, or image_text")
    image: str | None = Field(None, description="field with the picture's path, relative to the folder; default img")
    text: str | None = Field(None, description="field with the text; default text")
    label: str | None = Field(None, description="field with the label (or a list of them); default label")
    mask: str | None = Field(
        None,
        description="field with the path of a mask, a grey or palette picture of class numbers (255 = unlabelled); "
        "without option label, records then have no label",
    )
    file: str | None = Field(None, description="name of a part's file; default {part}.jsonl (val may be called dev)")
    picture: str | None = Field(None, description="path of a picture, made from the field's {value}; default {value}")
    kind: Literal["multiclass", "multilabel"] | None = Field(None, description="one label a record, or any number")
    no_label: str | None = Field(None, description="a label that means there is none: the record is left out")
    size: int = Field(224, ge=8, le=2048, description="side of the packed pictures, in pixels")
    max_bytes: int = Field(4096, ge=1, description="longest text in bytes; the rest is cut off")
    unseen: Literal["refuse", "drop"] = Field("refuse", description="records with a label that training does not have")
    no_picture: Literal["refuse", "drop", "keep"] = Field(
        "refuse", description="records without a picture: an error, left out, or kept as text alone"
    )
    damaged: Literal["refuse", "drop"] = Field("refuse", description="records whose picture cannot be decoded")
    seed: int = Field(0, description="seed of the order of records")


class ImageText(Source):
    """Lines as records; see the module's text."""

    Options: ClassVar[type[SourceOptions]] = ImageTextOptions

    def __init__(self, options: ImageTextOptions) -> None:
        super().__init__(options)
        preset = PRESETS.get(options.preset or "", {})
        given = {key: value for key, value in options.model_dump().items() if value is not None}
        defaults = {"image": "img", "text": "text", "label": "label", "file": "{part}.jsonl", "picture": "{value}"}
        self.set = {**defaults, "kind": "multiclass", "no_label": None, "name": "image_text", **preset, **given}
        self.labelled = options.mask is None or options.label is not None
        self.folder = absolute_path(options.path)
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is not a folder")
        self.files = self._files()
        self.classes = self._classes() if self.labelled else ()
        modalities = [
            ModalitySpec("image", "image", shape=(3, options.size, options.size), dtype="uint8"),
            ModalitySpec("text", "text", max_length=options.max_bytes),
        ]
        if options.mask is not None:
            modalities.append(ModalitySpec("mask", "image", shape=(1, options.size, options.size), dtype="uint8"))
        tasks = (TaskSpec("label", self.set["kind"], classes=self.classes),) if self.labelled else ()
        self.schema = DatasetSchema(self.set["name"], tuple(modalities), tasks)

    def _files(self) -> dict[str, str]:
        found = {}
        for part, names in PARTS.items():
            for name in names:
                path = absolute_path(self.set["file"].format(part=name), self.folder)
                if path.is_file():
                    found[part] = str(path)
                    break
        if "train" not in found:
            raise ValueError(
                f"{self.folder} has no {self.set['file'].format(part='train')}: give option file or preset"
            )
        return found

    def _classes(self) -> tuple[str, ...]:
        """Of labels.txt, a label a line; else those of the training part, sorted."""
        listed = self.folder / "labels.txt"
        if listed.is_file():
            return tuple(line.strip() for line in listed.read_text("utf-8").splitlines() if line.strip())
        return tuple(sorted(self._trained_labels - {self.set["no_label"]}))

    @cached_property
    def _trained_labels(self) -> set[str]:
        rows = _lines(self.files["train"])
        return {label for number, line in enumerate(rows) for label in self._labels(self._row("train", number, line))}

    def units(self) -> list[tuple[str, int, int]]:
        """(part, start, end) of the shuffled lines of a file."""
        sizes = {part: len(_lines(path)) for part, path in self.files.items()}
        step = _UNIT_RECORDS
        return [(part, a, min(a + step, n)) for part, n in sizes.items() for a in range(0, n, step)]

    def read(self, unit: tuple[str, int, int], notes: Counter[str]) -> Iterator[Record]:
        """Records of one unit; those that are left out are counted."""
        part, start, end = unit
        lines = _lines(self.files[part])
        for number in permutation(len(lines), self.set["seed"], part)[start:end].tolist():
            record = self._record(part, number, self._row(part, number, lines[number]), notes)
            if record is not None:
                notes[f"records_{part}"] += 1
                yield record

    def _row(self, part: str, number: int, line: str) -> dict[str, Any]:
        where = f"{self.files[part]}, line {number + 1}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not JSON: {error}") from error
        needed = ("text", "label") if self.labelled else ("text",)
        missing = [self.set[name] for name in needed if not isinstance(row, dict) or self.set[name] not in row]
        if missing:
            raise ValueError(
                f"{where} has no field {missing[0]!r}: say which fields hold what with -o text=... -o label=..."
            )
        return {**row, "where": where}

    def _labels(self, row: dict[str, Any]) -> list[str]:
        value = row[self.set["label"]]
        return [str(label).strip() for label in (value if isinstance(value, list) else [value])]

    def _record(self, part: str, number: int, row: dict[str, Any], notes: Counter[str]) -> Record | None:
        labels = self._labels(row) if self.labelled else []
        if labels == [self.set["no_label"]]:
            notes["without_label"] += 1
            return None
        unseen = [label for label in labels if label not in self._trained_labels or label not in self.classes]
        if unseen:
            if self.set["unseen"] == "refuse":
                raise ValueError(
                    f"{row['where']} has the label {unseen[0]!r}, which no training record has (or labels.txt lacks): "
                    "leave such records out with -o unseen=drop"
                )
            notes["unseen_label"] += 1
            return None
        values: dict[str, Any] = {"text": _cut(str(row[self.set["text"]] or ""), self.set["max_bytes"])}
        picture = self._picture(row, notes)
        if picture is None and self.set["no_picture"] != "keep":
            return None
        if picture is not None:
            values["image"] = picture
        if self.set.get("mask") is not None and row.get(self.set["mask"]) is None:
            notes["without_mask"] += 1
        elif self.set.get("mask") is not None:
            mask = self._file(row, row[self.set["mask"]], decode_mask, notes)
            if mask is None:
                return None
            values["mask"] = mask
        targets: dict[str, Any] = {"label": self._target(labels)} if self.labelled else {}
        return Record(f"{part}-{number:07d}", values, targets, {"default": part})

    def _target(self, labels: Sequence[str]) -> np.ndarray | float:
        numbers = [self.classes.index(label) for label in labels]
        if self.set["kind"] == "multiclass":
            return float(numbers[0])
        target = np.zeros(len(self.classes), np.float32)
        target[numbers] = 1
        return target

    def _picture(self, row: dict[str, Any], notes: Counter[str]) -> np.ndarray | None:
        value = row.get(self.set["image"])
        if value is None:
            if self.set["no_picture"] == "refuse":
                raise ValueError(
                    f"{row['where']} has no picture (field {self.set['image']!r} is absent or null): say which "
                    "field it is with -o image=..., leave such records out with -o no_picture=drop, or keep them as "
                    "text alone with -o no_picture=keep"
                )
            notes["without_picture"] += 1
            return None
        return self._file(row, self.set["picture"].format(value=value), decode_picture, notes)

    def _file(
        self,
        row: dict[str, Any],
        name: str,
        decode: Callable[[Path, int, Counter[str]], np.ndarray],
        notes: Counter[str],
    ) -> np.ndarray | None:
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise ValueError(f"{row['where']}: picture {name!r} is outside of {self.folder}")
        try:
            return decode(path, self.set["size"], notes)
        except PictureError as error:
            if self.set["damaged"] == "refuse":
                raise ValueError(
                    f"{row['where']}, picture {name}: {error}; leave such records out with -o damaged=drop"
                ) from error
            notes["damaged_picture"] += 1
            return None


def _cut(text: str, longest: int) -> str:
    """At most so many bytes of UTF-8, never half a character."""
    return text.encode()[:longest].decode("utf-8", "ignore")


@lru_cache(maxsize=3)
def _lines(path: str) -> list[str]:
    with Path(path).open(encoding="utf-8") as stream:
        return [line for line in stream if line.strip()]
