"""A data set as one HTML page of tables and pictures.

It shows numbers about records, never a record itself, so it can be handed on where the data cannot.
"""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from launch.datasets.tables import (
    CODE_COLUMNS,
    LABEL_COLUMNS,
    MODALITY_COLUMNS,
    OBJECT_COLUMNS,
    SAMPLING_COLUMNS,
    VALUE_COLUMNS,
    code_table,
    code_words,
    label_table,
    modality_table,
    moment_columns,
    moment_table,
    moment_words,
    object_table,
    object_words,
    sampling_table,
    value_table,
)
from launch.output.html import contents, html_page, paragraph, picture, section, table

BLUE, GREY = "#2f6db5", "#c9d1d9"


def data_page(facts: dict[str, Any]) -> str:
    """The page of what `data_shards.inspection.summary` found."""
    title = str(facts["name"])
    head = (
        f"{facts['records']:,} records, {facts['observations']:,} observations, {facts['bytes'] / 2**20:,.1f} MiB in "
        f"{facts['shards']} shards"
    )
    intro = [
        f"<h1>{escape(title)}</h1><p>{head}</p>",
        f'<p class="quiet">{escape(str(facts["url"]))}<br>digest {escape(facts["digest"])}</p>',
        _warnings(facts),
    ]
    sections = [
        section("Modalities", *modalities(facts), picture(length_figure(facts), "lengths")),
        section("Sampling of series", *_series(facts)),
        section("Objects and codes", *_objects(facts)),
        section("The most frequent codes", *_codes(facts)),
        section("Labels by moment", *_moments(facts)),
        *(section(f"Split {split}", *labels(split, parts)) for split, parts in facts["splits"].items()),
        *(_values(split, rows) for split, rows in facts["values"].items()),
    ]
    return html_page(title, [*intro, contents(sections), *sections])


def _warnings(facts: dict[str, Any]) -> str:
    rows = [f"<li>{escape(text)}</li>" for text in facts["warnings"]]
    if rows:
        return f'<h2>Look at this first</h2><div class="alarm"><ul>{"".join(rows)}</ul></div>'
    groups = (
        "no group is in two parts"
        if facts["groups_known"]
        else "no record names a group (e.g. its patient), so whether one is in two parts was not looked at"
    )
    return f'<p class="fine">Nothing suspicious was found: {groups}, and no modality tells a label by being there.</p>'


def _series(facts: dict[str, Any]) -> list[str]:
    if not facts["sampling"]["series"]:
        return []
    note = paragraph(f"From {facts['sampling']['records']:,} records taken evenly over the data set.", "quiet")
    figure = picture(when_figure(facts["sampling"]["series"]), "when observations are made")
    return [note, figure, table(SAMPLING_COLUMNS, sampling_table(facts))]


def _objects(facts: dict[str, Any]) -> list[str]:
    if not facts["objects"]:
        return []
    timed = {name: own for name, own in facts["objects"].items() if own["when"] is not None}
    note = paragraph(f"How many a record has and when; {object_words(facts)}.", "quiet")
    figure = picture(when_figure(timed), "when objects and codes are")
    return [note, figure, table(OBJECT_COLUMNS, object_table(facts))]


def _codes(facts: dict[str, Any]) -> list[str]:
    if not facts["codes"]:
        return []
    notes = [paragraph(f"{sentence}.", "quiet") for sentence in code_words(facts)]
    return [*notes, table(CODE_COLUMNS, code_table(facts))]


def _moments(facts: dict[str, Any]) -> list[str]:
    if facts["moments"] is None:
        return []
    note = paragraph(f"{moment_words(facts)}. Of each label its rate, or mean, among labelled moments.", "quiet")
    return [note, table(moment_columns(facts), moment_table(facts))]


def modalities(facts: dict[str, Any]) -> list[str]:
    """What records have: a table, and the patterns of presence."""
    figure = picture(presence_figure(facts), "which modalities records have, by pattern")
    return [table(MODALITY_COLUMNS, modality_table(facts)), figure]


def labels(split: str, parts: dict[str, Any]) -> list[str]:
    """Parts of a split and their labels."""
    return [table(LABEL_COLUMNS, label_table(parts)), picture(label_figure(parts), f"labels of split {split}")]


def _values(split: str, rows: list[dict[str, Any]]) -> str:
    note = paragraph("farthest: the value farthest from the mean, in standard deviations", "quiet")
    return section(f"Values in the train part of split {split}", note, table(VALUE_COLUMNS, value_table(rows)))


def presence_figure(facts: dict[str, Any]) -> Figure | None:
    """Most frequent patterns (rows) by modality (columns)."""
    names = [row["name"] for row in facts["modalities"]]
    patterns = facts["patterns"]["most_frequent"]
    if len(names) < 2 or not patterns:
        return None
    grid = np.array([[name not in pattern["absent"] for name in names] for pattern in patterns], float)
    figure = Figure(figsize=(10, 1.6 + 0.3 * len(patterns)), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(grid, aspect="auto", cmap=ListedColormap([GREY, BLUE]), vmin=0, vmax=1)
    share = [f"{pattern['records']:,} ({pattern['records'] / facts['records']:.1%})" for pattern in patterns]
    axes.set_yticks(range(len(patterns)), share, fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=60 if len(names) > 6 else 0, fontsize=8)
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(patterns) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.set_title(f"what records have (blue); {facts['patterns']['count']} patterns in all", fontsize=10, loc="left")
    return figure


def length_figure(facts: dict[str, Any]) -> Figure | None:
    """Histogram of lengths of each ragged modality."""
    rows = [row for row in facts["modalities"] if row["histogram"]]
    panels = [(row["name"], row["length_unit"], row["histogram"]["counts"], row["histogram"]["edges"]) for row in rows]
    return _histograms(panels)


def when_figure(modalities: dict[str, dict[str, Any]]) -> Figure | None:
    """Observations, objects or codes over the window, of each modality."""
    panels = []
    for name, own in modalities.items():
        edges = np.linspace(own["start"], own["start"] + own["window"], len(own["when"]) + 1).tolist()
        panels.append((name, own["time_unit"] or "time", own["when"], edges))
    return _histograms(panels)


def _histograms(panels: list[tuple[str, str, list[float], list[float]]]) -> Figure | None:
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(10, 1.9 * rows), layout="constrained")
    for place, (name, unit, counts, edges) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=BLUE)
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_xlabel(unit, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def label_figure(parts: dict[str, Any]) -> Figure | None:
    """Shares of classes per part, one panel a task."""
    tasks = [task for task, labels in next(iter(parts.values()))["tasks"].items() if "counts" in labels]
    if not tasks:
        return None
    figure = Figure(figsize=(10, len(tasks) * (0.8 + 0.3 * len(parts))), layout="constrained")
    for place, task in enumerate(tasks):
        axes = figure.add_subplot(len(tasks), 1, place + 1)
        for row, facts in enumerate(parts.values()):
            labels = facts["tasks"][task]
            if not labels["labelled"]:
                continue
            shares = np.array(list(labels["counts"].values()), float) / labels["labelled"]
            if labels["kind"] == "multilabel":
                axes.scatter(shares, np.full(len(shares), row), color=BLUE, s=18)
                continue
            colours = [f"C{n % 10}" for n in range(len(shares))]
            axes.barh(np.full(len(shares), row), shares, left=np.cumsum(shares) - shares, color=colours, height=0.7)
        axes.set_yticks(range(len(parts)), list(parts), fontsize=8)
        axes.set_xlim(0, 1)
        axes.invert_yaxis()
        names = ", ".join(next(iter(parts.values()))["tasks"][task]["counts"])
        axes.set_title(f"{task}: share of {names if len(names) < 100 else 'each class'}", fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
