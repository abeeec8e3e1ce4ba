"""Rows about a data set that the terminal and the page share."""

from __future__ import annotations

from itertools import groupby
from typing import Any

VALUE_COLUMNS = ("modality", "channel", "count", "mean", "std", "min", "max", "farthest")


MOST_CHANNELS, FEW_CHANNELS = 40, 8


def label_text(labels: dict[str, Any]) -> str:
    """Class counts, or mean and deviation of a regression target."""
    if "counts" in labels:
        return ", ".join(f"{name} {count:,}" for name, count in labels["counts"].items())
    pairs = zip(labels["mean"], labels["std"], strict=True)
    return ", ".join(f"{mean:.3g} ± {std:.3g}" for mean, std in pairs)


def value_table(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Rows of ``VALUE_COLUMNS``; of modalities with very many channels the first few."""
    shown: list[tuple[Any, ...]] = []
    for _, group in groupby(rows, key=lambda row: row["modality"]):
        own = [tuple(float(row[name]) if name == "farthest" else row[name] for name in VALUE_COLUMNS) for row in group]
        short = own if len(own) <= MOST_CHANNELS else own[:FEW_CHANNELS]
        shown += short
        if len(short) < len(own):
            shown.append((own[0][0], f"... {len(own) - len(short)} more", *[None] * (len(VALUE_COLUMNS) - 2)))
    return shown
