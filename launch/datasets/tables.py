"""Rows about a data set that the terminal and the page share. Both get them from `data_shards.inspection.summary`."""

from __future__ import annotations

from itertools import groupby
from typing import Any

Row = tuple[Any, ...]

MODALITY_COLUMNS = ("modality", "kind", "present", "share", "median length", "longest", "channels or shape")
SAMPLING_COLUMNS = ("series", "channel", "records with it", "values each", "median gap", "unit of time")
OBJECT_COLUMNS = (
    "modality", "kind", "records with it", "empty", "each: median", "each: 5 to 95 %", "most", "times: median",
    "times: 5 to 95 %",    "median gap", "unit of time",
)  # fmt: skip
CODE_COLUMNS = ("modality", "code", "records", "counted among")
LABEL_COLUMNS = ("part", "records", "groups", "task", "kind", "labelled", "labels")
VALUE_COLUMNS = ("modality", "channel", "count", "mean", "std", "min", "max", "farthest")

LONG_LIST = 120  # characters
MOST_CHANNELS, FEW_CHANNELS = 40, 8


def modality_table(facts: dict[str, Any]) -> list[Row]:
    """Rows of ``MODALITY_COLUMNS``; a long list of channels is cut short and counted."""
    rows = []
    for row in facts["modalities"]:
        length, what = row["length"] or {}, ", ".join(row["channels"]) or "x".join(map(str, row["shape"]))
        short = what if len(what) < LONG_LIST else f"{what[: LONG_LIST - 10]} ... ({len(row['channels'])})"
        share = f"{row['share']:.1%}"
        kind = f"{'timed ' * row['timed']}{row['kind']}"
        rows.append((row["name"], kind, row["present"], share, length.get("p50"), length.get("p100"), short))
    return rows


def sampling_table(facts: dict[str, Any]) -> list[Row]:
    """Rows of ``SAMPLING_COLUMNS``, one a channel of a series."""
    return [
        (name, channel, f"{own['share']:.1%}", own["per_record"], own["median_gap"], series["time_unit"])
        for name, series in facts["sampling"]["series"].items()
        for channel, own in series["channels"].items()
    ]


def object_table(facts: dict[str, Any]) -> list[Row]:
    """Rows of ``OBJECT_COLUMNS``, one a modality of timed objects or of codes."""
    rows = []
    for name, own in facts["objects"].items():
        each, times, gap = own["per_record"] or {}, own["times"] or {}, own["gap"] or {}
        empty = f"{own['empty'] / own['present']:.1%}" if own["present"] else None
        many = (each.get("p50"), _between(each), each.get("p100"))
        when = (times.get("p50"), _between(times), gap.get("p50"), own["time_unit"] or None)
        rows.append((name, own["kind"], own["present"], empty, *many, *when))
    return rows


def _between(quantiles: dict[str, float]) -> str | None:
    return f"{quantiles['p5']:.4g} to {quantiles['p95']:.4g}" if quantiles else None


def object_words(facts: dict[str, Any]) -> str:
    """Where the numbers of ``object_table`` come from."""
    splits = sorted({own["times_of"] for own in facts["objects"].values() if own["times_of"]})
    times = f"times: of the train part of split {', '.join(splits)}; " if splits else ""
    return f"{times}gaps: from {facts['sampling']['records']:,} records"


def code_table(facts: dict[str, Any]) -> list[Row]:
    """Rows of ``CODE_COLUMNS``: the most frequent codes of each modality."""
    return [
        (name, code, count, own["counted"])
        for name, own in facts["codes"].items()
        for code, count in own["most_frequent"]
    ]


def code_words(facts: dict[str, Any]) -> list[str]:
    """A sentence for each modality of codes: how large its vocabulary is, and how much of the data it does not name."""
    sentences = []
    for name, own in facts["codes"].items():
        size = f"{name}: codes with a number of their own {own['named']:,}, rare ones that share one {own['rare']:,}"
        if own["unknown_codes"] is None:
            sentences.append(f"{size}; how many of the {own['codes']:,} in the records are unknown was not counted")
            continue
        unknown, rare = (f"{own[k]:,} ({own[k] / max(1, own['codes']):.1%})" for k in ("unknown_codes", "rare_codes"))
        sentences.append(f"{size}; of {own['codes']:,} codes in the records {unknown} are unknown and {rare} are rare")
    return sentences


def moment_columns(facts: dict[str, Any]) -> tuple[str, ...]:
    """Of ``moment_table``: the time, how many moments, and each label."""
    found = facts["moments"]
    return (f"moments, {found['unit']}" if found["unit"] else "moments", "samples", *found["labels"])


def moment_table(facts: dict[str, Any]) -> list[Row]:
    """One row a stretch of time: moments in it, and rate (or mean) of each label among those that are labelled."""
    found = facts["moments"]
    times = [f"{start:.4g} to {end:.4g}" for start, end in zip(found["edges"], found["edges"][1:], strict=False)]
    rates = [[None if rate is None else f"{rate:.4g}" for rate in row] for row in found["labels"].values()]
    return [
        (time, count, *(row[i] for row in rates))
        for i, (time, count) in enumerate(zip(times, found["counts"], strict=True))
    ]


def moment_words(facts: dict[str, Any]) -> str:
    """How many moments there are, and how many a record has."""
    found, each = facts["moments"], facts["moments"]["per_record"]
    return (
        f"labels at {found['samples']:,} moments of {facts['records']:,} records; a record has {each['p0']:g} to "
        f"{each['p100']:g}, in the middle {each['p50']:g}"
    )


def label_table(parts: dict[str, Any]) -> list[Row]:
    """Rows of ``LABEL_COLUMNS``: of one split, its parts by its tasks."""
    return [
        (part, own["records"], own["groups"] or None, task, labels["kind"], labels["labelled"], label_text(labels))
        for part, own in parts.items()
        for task, labels in own["tasks"].items()
    ]


def label_text(labels: dict[str, Any]) -> str:
    """Class counts, or mean and deviation of a regression target."""
    if "counts" in labels:
        return ", ".join(f"{name} {count:,}" for name, count in labels["counts"].items())
    pairs = zip(labels["mean"], labels["std"], strict=True)
    return ", ".join(f"{mean:.3g} ± {std:.3g}" for mean, std in pairs)


def value_table(rows: list[dict[str, Any]]) -> list[Row]:
    """Rows of ``VALUE_COLUMNS``; of modalities with very many channels the first few."""
    shown: list[Row] = []
    for _, group in groupby(rows, key=lambda row: row["modality"]):
        own = [tuple(row[name] for name in VALUE_COLUMNS) for row in group]
        short = own if len(own) <= MOST_CHANNELS else own[:FEW_CHANNELS]
        shown += short
        if len(short) < len(own):
            shown.append((own[0][0], f"... {len(own) - len(short)} more", *[None] * (len(VALUE_COLUMNS) - 2)))
    return shown
