"""The records that each expert serves most: collected while a part is predicted, and drawn."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from dataclasses import dataclass, field

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

EXAMPLES = 6
WORDS = 6


@dataclass(frozen=True)
class Example:
    """A record that an expert serves: its weight, picture (C, H, W), text."""

    weight: float
    picture: Tensor | None
    text: str


@dataclass
class Gallery:
    """What each expert of one site serves: the records with the highest weights, and how often which word."""

    site: str = ""
    best: dict[int, list[Example]] = field(default_factory=dict)
    words: dict[int, dict[str, float]] = field(default_factory=dict)
    everywhere: Counter[str] = field(default_factory=Counter)

    def add(self, weights_BK: Tensor, pictures: dict[int, Tensor], texts: dict[int, str]) -> None:
        """Take in a batch."""
        rows = (~weights_BK.isnan().any(1)).nonzero()[:, 0].tolist()
        found = {row: words_of(texts.get(row, "")) for row in rows}
        for words in found.values():
            self.everywhere.update(words)
        for expert, weight_B in enumerate(weights_BK.T.tolist()):
            counts = self.words.setdefault(expert, {})
            for row, words in found.items():
                for word in words:
                    counts[word] = counts.get(word, 0.0) + weight_B[row]
            new = [Example(weight_B[row], pictures.get(row), texts.get(row, "")) for row in rows]
            self.best[expert] = _varied(sorted([*self.best.get(expert, []), *new], key=lambda one: -one.weight))

    def typical(self, expert: int) -> list[str]:
        """Words that this expert's records have more often than all have, weighted by how often and how much more."""
        own, total = self.words.get(expert, {}), sum(self.everywhere.values())
        share = sum(own.values())
        score = {
            word: mass / share * math.log(mass / share / (self.everywhere[word] / total))
            for word, mass in own.items()
            if mass > 0
        }
        ranked = sorted(score, key=lambda word: (-score[word], word))
        return [word for word in ranked if score[word] > 0][:WORDS]


def words_of(text: str) -> set[str]:
    """Lower-case words of a text, each once."""
    return set("".join(c if c.isalnum() else " " for c in text.lower()).split())


def _varied(examples: list[Example]) -> list[Example]:
    """The first few, leaving out those that repeat the words or the picture of one that is shown."""
    shown: list[Example] = []
    for one in examples:
        repeated = any((one.text and one.text == other.text) or _same(one.picture, other.picture) for other in shown)
        if not repeated:
            shown.append(one)
        if len(shown) == EXAMPLES:
            break
    return shown


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


EXAMPLE_INCHES = 1.9


def gallery_figure(gallery: Gallery) -> Figure:
    """A row an expert: the records that it serves most, with their text, below the words that are typical of it."""
    experts = sorted(gallery.best)
    columns = max(len(examples) for examples in gallery.best.values())
    figure = Figure(figsize=(EXAMPLE_INCHES * columns, (EXAMPLE_INCHES + 1.0) * len(experts)))
    figure.set_layout_engine("constrained")
    for part, expert in zip(figure.subfigures(len(experts), 1, squeeze=False)[:, 0], experts, strict=True):
        part.suptitle(
            f"{gallery.site} expert {expert}: {', '.join(gallery.typical(expert))}", fontsize=9, x=0.01, ha="left"
        )
        for axes, example in zip(part.subplots(1, columns, squeeze=False)[0], gallery.best[expert], strict=False):
            _show_example(axes, example)
        for axes in part.axes:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    return figure


def _show_example(axes: Axes, example: Example) -> None:
    if example.picture is not None:
        pixels = example.picture.permute(1, 2, 0).cpu()
        axes.imshow(pixels.numpy() if pixels.shape[2] == 3 else pixels[..., 0].numpy(), cmap="gray")
    lines = textwrap.wrap(" ".join(example.text.split()), 26)
    if len(lines) > 3:
        lines = [*lines[:2], lines[2][:23] + "..."]
    axes.set_xlabel("\n".join([f"weight {example.weight:.2f}", *lines]), fontsize=7)
