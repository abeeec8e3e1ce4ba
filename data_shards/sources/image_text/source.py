"""Pictures with text and labels, as research data sets come: a folder with a JSON line per record and files beside it.

Which field is what is an option, and presets know the layouts in which three data sets are distributed or prepared:

* ``food101``: UPMC Food-101 (Wang et al. 2015), 101 classes. As distributed: ``texts/{train,test}_titles.csv`` with
  lines ``image,title,class`` and ``images/{train,test}/CLASS/IMAGE``; there is no part val, ``val_share`` makes one. Or
  as prepared for multimodal bitransformers: ``{train,dev,test}.jsonl`` with id, label, text, img; the text may then be
  page text or a title, which give different accuracies.
* ``mm_imdb``: MM-IMDB (Arevalo et al. 2017). As distributed: ``split.json`` with lists train, dev and test of ids,
  ``dataset/ID.json`` with plot (the longest is taken, as the authors do) and genres, ``dataset/ID.jpeg``. Or prepared:
  ``{train,dev,test}.jsonl`` with id, text, img, label (a list). The papers count 23 genres, the files name a few more:
  list those that count in ``labels.txt``, and ``unseen=ignore`` takes the others out.
* ``snli_ve``: SNLI-VE (Xie et al. 2019): ``snli_ve_{train,dev,test}.jsonl`` with gold_label, sentence2 (the hypothesis)
  and Flickr30K_ID, whose picture, the premise, is in ``Flickr30K/flickr30k_images``. Pairs without a gold label are
  left out.

Where both are there, JSON lines are read. Other names of files are options (Hateful Memes: ``-o val=dev_seen.jsonl
-o test=test_seen.jsonl``), and files of JSON lines that are no part are named. ``labels.txt``, a label a line, lists
the classes; without it they are those of training, sorted.

What is not there is absent, null, NaN or an empty text (or, for labels, an empty list); it is never made a word. A text
that is not there is no modality. Labels are texts, whole numbers or truth values, as JSON writes them: 1 and "1" are
one class. A value of another type, a field twice in an object, half of a character, and what is not UTF-8 are errors
with file and line.

Pictures are turned upright, of several frames the first is taken, transparency is laid on ``background``, 16 bits of
grey are scaled by their range, embedded colour profiles are not applied; each of these is counted.

With ``several`` a record may hold many pictures and the turns of a dialogue, as objects in their order. Every turn is
an input: where the answer that is to be predicted is a turn of the dialogue, take it out.

Records are packed in random order: official test files are sorted by class, and neighbours should tell nothing. Their
keys are part and number, or, with option ``id``, the data set's own, by which predictions can be joined to it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.paths import absolute_path
from data_shards.permutation import permutation
from data_shards.records.record import Objects, Record
from data_shards.records.schema import DatasetSchema, ModalitySpec, TaskSpec
from data_shards.sources.base import Source, SourceOptions, hashed_part
from data_shards.sources.image_text.fields import LeftOut, Row, key_of, name_of, names_of, text_of, turns_of
from data_shards.sources.image_text.files import PictureFiles
from data_shards.sources.image_text.labels import Labels, class_names
from data_shards.sources.image_text.layouts import food101_parts, mm_imdb_parts
from data_shards.sources.image_text.lines import Rows
from data_shards.sources.image_text.options import ImageTextOptions, Layout
from data_shards.sources.image_text.parts import PARTS, json_parts

logger = logging.getLogger(__name__)

DISTRIBUTED: dict[str, Callable[[Path], dict[str, Rows] | None]] = {
    "food101": food101_parts,
    "mm_imdb": mm_imdb_parts,
}
_UNIT_RECORDS = 1_000


class ImageText(Source):
    """Lines as records; see the module's text."""

    Options: ClassVar[type[SourceOptions]] = ImageTextOptions

    def __init__(self, options: ImageTextOptions) -> None:
        super().__init__(options)
        self.options: ImageTextOptions = options
        if options.several and options.mask:
            raise ValueError("option several is for records without a mask, which belongs to one picture")
        self.layout = Layout.of(options)
        self.folder = absolute_path(options.path)
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is not a folder")
        self.parts, self.not_read = self._find_parts()
        self._tell()
        self.labels = self._learn_labels()
        self._check_keys()
        self.files = PictureFiles(self.folder, options, self.layout)
        self.schema = self._schema()

    def _find_parts(self) -> tuple[dict[str, Rows], list[str]]:
        """Part -> its records, and files of JSON lines that are none. As distributed, if there are no JSON lines."""
        options, parts = self.options, None
        given = {"train": options.train, "val": options.val, "test": options.test}
        prepared = any(given.values()) or options.file or (self.folder / "train.jsonl").is_file()
        if options.preset in DISTRIBUTED and not prepared:
            parts = DISTRIBUTED[options.preset](self.folder)
        parts, not_read = json_parts(self.folder, self.layout.file, given) if parts is None else (parts, [])
        if "val" in parts and options.val_share:
            raise ValueError("option val_share makes a part val, and there is one already: leave it out")
        return parts, not_read

    def _tell(self) -> None:
        """On stderr, once: what is not read, and what is empty."""
        if self.not_read:
            names = ", ".join(self.not_read)
            logger.warning("%s: not read: %s; say -o val=FILE or -o test=FILE if it is a part", self.folder, names)
        for part, rows in self.parts.items():
            if not len(rows):
                logger.warning("%s: the file of part %s holds no record", self.folder, part)

    def _learn_labels(self) -> Labels | None:
        """None for masks without labels. Raises ValueError if no training record has the fields for text and label."""
        labels = Labels(self.layout, self.options.unseen)
        labelled = self.options.mask is None or self.options.label is not None
        rows, trained = self.parts["train"], set[str]()
        if not len(rows):
            raise ValueError(f"{self.folder}: the part train holds no record")
        missing = [self.layout.text, self.layout.label] if labelled else [self.layout.text]
        for number in range(len(rows)):
            row = rows.row(number)
            missing = [field for field in missing if field not in row]
            trained.update(labels.raw(row, rows.where(number)) if labelled else ())
        if missing:
            raise ValueError(
                f"{rows.where(0)} has no field {missing[0]!r}, nor has any other record of training; it has "
                f"{', '.join(rows.row(0)) or 'none'}: say which fields hold what with -o text=... -o label=..."
            )
        if not labelled:
            return None
        names = class_names(self.folder, frozenset(trained), self.layout)
        return Labels(self.layout, self.options.unseen, frozenset(trained), {name: n for n, name in enumerate(names)})

    def _check_keys(self) -> None:
        """Raises ValueError, with both places, if two records have one id."""
        if self.options.id is None:
            return
        seen: dict[str, tuple[Rows, int]] = {}
        for rows in self.parts.values():
            for number in range(len(rows)):
                where = rows.where(number)
                key = key_of(rows.row(number), self.options.id, where)
                if key in seen:
                    first, place = seen[key]
                    raise ValueError(
                        f"{where} has the {self.options.id} {key!r}, which {first.where(place)} has already: ids must "
                        "be unique in all parts; leave option id out to number the records"
                    )
                seen[key] = rows, number

    def _schema(self) -> DatasetSchema:
        size = self.options.size
        objects: dict[str, Any] = {}
        if self.options.several:
            objects = {"timed": True, "time_unit": "places", "horizon": float(self.options.several)}
        modalities = [
            ModalitySpec("image", "image", shape=(3, size, size), dtype="uint8", **objects),
            ModalitySpec("text", "text", max_length=self.options.max_bytes, **objects),
        ]
        if self.options.mask is not None:
            modalities.append(ModalitySpec("mask", "image", shape=(1, size, size), dtype="uint8"))
        classes = tuple(self.labels.classes or ()) if self.labels else ()
        tasks = (TaskSpec("label", self.layout.kind, classes=classes),) if self.labels else ()
        return DatasetSchema(self.layout.name, tuple(modalities), tasks)

    def units(self) -> list[tuple[str, int, int]]:
        """(part, start, end) of the shuffled records of a part."""
        sizes = {part: len(self.parts[part]) for part in PARTS if part in self.parts}
        step = _UNIT_RECORDS
        return [(part, a, min(a + step, n)) for part, n in sizes.items() for a in range(0, n, step)]

    def read(self, unit: tuple[str, int, int], notes: Counter[str]) -> Iterator[Record]:
        """Records of one unit. What is left out is counted by reason and in all, what is odd about the others, too."""
        part, start, end = unit
        rows = self.parts[part]
        for number in permutation(len(rows), self.options.seed, part)[start:end].tolist():
            odd = Counter[str]()
            try:
                record = self._record(part, number, odd)
            except LeftOut as why:
                notes.update([str(why), "records_left_out"])
                continue
            notes.update(+odd)
            notes[f"records_{record.splits['default']}"] += 1
            yield record

    def report(self, notes: Counter[str]) -> dict[str, Any]:
        """Options, counts, and which files of JSON lines are no part."""
        counted = notes + Counter({"files_not_read": len(self.not_read)})
        return super().report(counted) | {"files_not_read": self.not_read}

    def _record(self, part: str, number: int, notes: Counter[str]) -> Record:
        rows = self.parts[part]
        row, where = rows.row(number), rows.where(number)
        targets = {"label": self.labels.target(row, part, where, notes)} if self.labels else {}
        values = self._several(row, where, notes) if self.options.several else self._one(row, where, notes)
        if not values:
            raise LeftOut("without_text_and_picture")
        key = key_of(row, self.options.id, where) if self.options.id else f"{part}-{number:07d}"
        pictures = names_of(row, self.layout.image, where) if self.options.several else []
        picture = pictures[0] if pictures else None if self.options.several else name_of(row, self.layout.image, where)
        home = self._home(part, picture or key)
        return Record(key, values, targets, {"default": home})

    def _one(self, row: Row, where: str, notes: Counter[str]) -> dict[str, Any]:
        """A record's text, picture and mask."""
        text = text_of(row, self.layout.text, where)
        notes["without_text"] += text is None
        found = {
            "text": None if text is None else self._cut(text, notes),
            "image": self.files.picture(row, where, notes),
            "mask": self.files.mask(row, where, notes),
        }
        return {name: value for name, value in found.items() if value is not None}

    def _several(self, row: Row, where: str, notes: Counter[str]) -> dict[str, Any]:
        """The last so many turns and pictures of a record, at their places from the first one that is kept."""
        most = self.options.several or 0
        turns = turns_of(row, self.layout.text, where)
        notes["without_text"] += not turns
        notes["turns_left_out"] += max(0, len(turns) - most)
        texts = [self._cut(text, notes) for text in turns[-most:]]
        pictures = self.files.pictures(row, where, notes)
        found = {
            "text": Objects(np.arange(len(texts), dtype=np.float32), texts),
            "image": Objects(np.array(list(pictures), np.float32), list(pictures.values())),
        }
        return {name: own for name, own in found.items() if len(own)}

    def _home(self, part: str, group: str) -> str:
        share = self.options.val_share
        if part != "train" or share is None:
            return part
        return hashed_part(group, (("train", 1 - share), ("val", share)), str(self.options.seed))

    def _cut(self, text: str, notes: Counter[str]) -> str:
        """At most so many bytes of UTF-8, never half a character."""
        data, longest = text.encode(), self.options.max_bytes
        if len(data) <= longest:
            return text
        notes["texts_cut"] += 1
        return data[:longest].decode("utf-8", "ignore")
