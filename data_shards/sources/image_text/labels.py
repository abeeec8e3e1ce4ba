"""Labels of records: which classes there are, what a record's target is, and what happens where there is none."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from data_shards.sources.image_text.fields import LeftOut, Row, labels_of
from data_shards.sources.image_text.options import Layout
from data_shards.sources.readers.strict_json import BOM, parse_text

LISTED = "labels.txt"


@dataclass(frozen=True)
class Labels:
    """The rules for one data set.

    Attributes:
        layout: the label's field and kind, and what is done without one. unseen: what is done with unknown labels.
        trained: labels of training. classes: label -> class number.
    """

    layout: Layout
    unseen: Literal["refuse", "drop", "ignore"]
    trained: frozenset[str] = frozenset()
    classes: dict[str, int] | None = None

    def raw(self, row: Row, where: str) -> list[str]:
        """As the record names them, repeated ones too; none if it says that there is none. Raises ValueError."""
        labels = labels_of(row, self.layout.label, where)
        if labels == [self.layout.no_label]:
            return []
        if len(set(labels)) > 1 and self.layout.kind == "multiclass":
            names = ", ".join(map(repr, labels[:4]))
            raise ValueError(f"{where} has {len(labels)} labels, {names}, and one is read: say -o kind=multilabel")
        return labels

    def target(self, row: Row, part: str, where: str, notes: Counter[str]) -> np.ndarray | float | None:
        """A class number, or float32 [classes] of 0 and 1; None for a record that is packed unlabelled.

        Raises:
            ValueError: an unknown label or no label where that is refused. LeftOut: where the record is dropped.
        """
        named, classes = self.raw(row, where), self.classes or {}
        labels = list(dict.fromkeys(named))
        notes["labels_repeated"] += len(named) - len(labels)
        known = [label for label in labels if label in self.trained and label in classes]
        if len(known) < len(labels):
            self._unseen(next(label for label in labels if label not in known), where)
            notes["labels_ignored"] += len(labels) - len(known)
        if not known:
            self._unlabelled(row, part, where)
            notes[f"unlabelled_{part}"] += 1
            return None
        if self.layout.kind == "multiclass":
            return float(classes[known[0]])
        target = np.zeros(len(classes), np.float32)
        target[[classes[label] for label in known]] = 1
        return target

    def _unseen(self, label: str, where: str) -> None:
        if self.unseen == "refuse":
            raise ValueError(
                f"{where} has the label {label!r}, which no training record has (or {LISTED} lacks): leave such "
                "records out with -o unseen=drop, or such labels with -o unseen=ignore"
            )
        if self.unseen == "drop":
            raise LeftOut("unseen_label")

    def _unlabelled(self, row: Row, part: str, where: str) -> None:
        policy = self.layout.unlabelled or ("drop" if part == "train" else "keep")
        if policy == "refuse":
            raise ValueError(
                f"{where} has no label (field {self.layout.label!r} is {row.get(self.layout.label)!r}): leave such "
                "records out with -o unlabelled=drop, or pack them without a target with -o unlabelled=keep"
            )
        if policy == "drop":
            raise LeftOut("without_label")


def class_names(folder: Path, trained: frozenset[str], layout: Layout) -> list[str]:
    """Of labels.txt, a label a line; else those of training, sorted.

    Raises:
        ValueError: none in training although it is to be learnt, one twice, or too few to tell apart.
    """
    listed = folder / LISTED
    if not trained and layout.unlabelled != "keep":
        raise ValueError(f"{folder}: no record of training has a label in field {layout.label!r}")
    if listed.is_file():
        text = parse_text(listed.read_bytes().removeprefix(BOM), str(listed))
        names = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        names = sorted(trained)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{listed} lists {twice[0]!r} twice")
    least = 2 if layout.kind == "multiclass" else 1
    if len(names) < least:
        raise ValueError(f"{folder}: the labels are {names}, and a class needs another to tell it from")
    return names
