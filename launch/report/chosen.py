"""What a run without training steps consists of: the members of an ensemble and what each counts, or what a baseline
has chosen on validation."""

from __future__ import annotations

from typing import Any

from launch.output.html import paragraph, table


def chosen(result: dict[str, Any]) -> list[str]:
    """Parts of a section, from what the run said at its end; none of a run that trains."""
    if "members" in result:
        return _ensemble(result)
    return _baseline(result) if "family" in result else []


def _ensemble(result: dict[str, Any]) -> list[str]:
    how, rows = result.get("chosen") or {}, []
    for task, weights in result["weights"].items():
        own = how.get(task, {})
        scores = {round(weight, 6): score for weight, score in own.get("scores", ())}
        rows.append((task, *map(float, weights), own.get("metric"), scores.get(round(weights[-1], 6))))
    last = result["members"][-1]
    told = "Chances of all members are averaged, each by its weight."
    told += f" The weight of {last} was chosen by the metric named on validation, a task at a time." if how else ""
    columns = ("task", *(f"weight of {name}" for name in result["members"]))
    if not how:
        return [paragraph(told), table(columns, [row[:-2] for row in rows])]
    return [paragraph(told), table((*columns, "chosen by", "its value"), rows)]


def _baseline(result: dict[str, Any]) -> list[str]:
    rows = [
        (task, number, _settings(own), own.get("val_loss"))
        for task, found in (result.get("chosen") or {}).items()
        for number, own in enumerate(found, start=1)
    ]
    told = f"A model of family {result['family']} on whole-record statistics; of several settings the smallest loss on "
    told += "validation. A task of several labels, or of several numbers, has a model for each."
    notes = [paragraph(note, "quiet") for note in result.get("notes", ())]
    return [paragraph(told), *notes, table(("task", "model", "settings", "validation loss"), rows)]


def _settings(own: dict[str, Any]) -> str:
    values = {key: value for key, value in own.items() if key != "val_loss"}
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )
