"""What a checkpoint says about itself besides tensors, and whether two data sets describe the same thing."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from data_shards import DatasetSchema, ModalitySpec, TaskSpec
from data_shards.records.statistics import SplitStatistics

_STATISTICS = TypeAdapter(SplitStatistics)
_WAVEFORMS = re.compile(r"(.*\bencoders\.waveform_[^.]+)\.position_TD")


def statistics_to_json(statistics: SplitStatistics) -> dict[str, Any]:
    """Plain values, as a checkpoint stores them."""
    stored: dict[str, Any] = _STATISTICS.dump_python(statistics, mode="json")
    return stored


def statistics_from_json(value: dict[str, Any]) -> SplitStatistics:
    """Inverse of `statistics_to_json`."""
    return _STATISTICS.validate_python(value)


def schema_difference(expected: DatasetSchema, found: DatasetSchema, tasks: bool = True) -> str | None:
    """The first difference that matters to a model, as a clause; None if the schemas agree.

    The most that a record may hold is a rule for packing: no model depends on it but through its own recipe.
    Without `tasks` only the modalities count: predictions need no labels.
    """
    pairs: list[tuple[str, tuple[ModalitySpec | TaskSpec, ...], tuple[ModalitySpec | TaskSpec, ...]]] = [
        ("modalities", expected.modalities, found.modalities),
        ("tasks", expected.tasks, found.tasks),
    ]
    for kind, before, after in pairs if tasks else pairs[:1]:
        names_before, names_after = [item.name for item in before], [item.name for item in after]
        if names_before != names_after:
            return f"its {kind} are {', '.join(names_after)}, the model was trained on {', '.join(names_before)}"
        for old, new in zip(before, after, strict=True):
            for field, value in asdict(old).items():
                if field not in ("description", "max_length") and asdict(new)[field] != value:
                    return f"{kind} {old.name}: {field} is {asdict(new)[field]!r}, the model was trained with {value!r}"
    return None


def outdated(parameters: Collection[str]) -> str | None:
    """What to do, as a clause, with weights of these names if this version gives them another meaning; else None.

    Tokens of waveforms were stretches of the declared length before the length became an input (`length.weight`).
    """
    for name in sorted(parameters):
        found = _WAVEFORMS.fullmatch(name)
        if found and f"{found[1]}.length.weight" not in parameters:
            return (
                f"has weights of a version whose waveform tokens ({found[1]}) were stretches of the declared length, "
                "not of each signal's own: train again, or use the version that wrote it"
            )
    return None
