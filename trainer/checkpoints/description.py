"""What a checkpoint says about itself besides tensors, and whether two data sets describe the same thing."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import asdict, replace
from typing import Any

from pydantic import TypeAdapter

from data_shards import DatasetSchema, ModalitySpec, TaskSpec
from data_shards.records.statistics import SplitStatistics
from data_shards.shards.lineage import Embedded

_STATISTICS = TypeAdapter(SplitStatistics)
_EMBEDDED = TypeAdapter(dict[str, Embedded])
_WAVEFORMS = re.compile(r"(.*\bencoders\.waveform_[^.]+)\.position_TD")


def statistics_to_json(statistics: SplitStatistics) -> dict[str, Any]:
    """Plain values, as a checkpoint stores them."""
    stored: dict[str, Any] = _STATISTICS.dump_python(statistics, mode="json")
    return stored


def statistics_from_json(value: dict[str, Any]) -> SplitStatistics:
    """Inverse of `statistics_to_json`."""
    return _STATISTICS.validate_python(value)


def embedded_to_json(embedded: dict[str, Embedded]) -> dict[str, Any]:
    """Modality -> what it was before a pretrained encoder made vectors of it, as a checkpoint stores it."""
    stored: dict[str, Any] = _EMBEDDED.dump_python(embedded, mode="json")
    return stored


def embedded_from_json(value: dict[str, Any] | None) -> dict[str, Embedded]:
    """Inverse of `embedded_to_json`; of checkpoints without it nothing was embedded."""
    return _EMBEDDED.validate_python(value or {})


def schema_difference(expected: DatasetSchema, found: DatasetSchema, tasks: bool = True) -> str | None:
    """The first difference that matters to a model, as a clause; None if the schemas agree.

    Modalities, channels and tasks are found by their names (`schema_map`), so their order makes no difference. The
    most that a record may hold is a rule for packing: no model depends on it but through its own recipe. Without
    `tasks` only the modalities count: predictions need no labels.
    """
    pairs: list[tuple[str, tuple[ModalitySpec | TaskSpec, ...], tuple[ModalitySpec | TaskSpec, ...]]] = [
        ("modalities", expected.modalities, found.modalities),
        ("tasks", expected.tasks, found.tasks),
    ]
    for kind, before, after in pairs if tasks else pairs[:1]:
        names_before, names_after = [item.name for item in before], [item.name for item in after]
        if sorted(names_before) != sorted(names_after):
            return f"its {kind} are {', '.join(names_after)}, the model was trained on {', '.join(names_before)}"
        found_by_name = {item.name: item for item in after}
        for old in before:
            new = asdict(_in_order_of(old, found_by_name[old.name]))
            if problem := _other_encoder(old, found_by_name[old.name]):
                return problem
            if new.get("kind") == asdict(old).get("kind") == "codes" and new["vocabulary"] != asdict(old)["vocabulary"]:
                return _other_vocabulary(old, found_by_name[old.name])
            for field, value in asdict(old).items():
                if field not in ("description", "max_length") and new[field] != value:
                    return f"{kind} {old.name}: {field} is {new[field]!r}, the model was trained with {value!r}"
    return None


def _other_encoder(old: ModalitySpec | TaskSpec, new: ModalitySpec | TaskSpec) -> str | None:
    if not isinstance(old, ModalitySpec) or not isinstance(new, ModalitySpec) or old.encoder == new.encoder:
        return None
    if not new.encoder:
        return (
            f"modality {old.name} is {new.kind} here, and the model was trained on vectors that encoder "
            f"{old.encoder[:12]} made of it: embed these data with that one (python -m launch embed)"
        )
    if not old.encoder:
        return (
            f"modality {old.name} was embedded here, by encoder {new.encoder[:12]}, and the model reads the "
            f"{old.kind} itself: give it the data that were embedded"
        )
    return (
        f"modality {old.name} was embedded by another encoder ({new.encoder[:12]}) than the model was trained with "
        f"({old.encoder[:12]}): embed the original data with that one"
    )


def _other_vocabulary(old: ModalitySpec | TaskSpec, new: ModalitySpec | TaskSpec) -> str:
    assert isinstance(old, ModalitySpec) and isinstance(new, ModalitySpec)
    return (
        f"modality {old.name} has another vocabulary ({new.vocabulary[:12]}, {new.codes:,} numbers) than the model was "
        f"trained with ({old.vocabulary[:12]}, {old.codes:,} numbers): pack these data with the vocabulary of the "
        "training data, in a mapping `vocabulary: FOLDER` of that data set"
    )


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


def _in_order_of(old: ModalitySpec | TaskSpec, new: ModalitySpec | TaskSpec) -> ModalitySpec | TaskSpec:
    """The modality with its channels, and their units, in the other's order, if they are the same channels."""
    if not isinstance(old, ModalitySpec) or not isinstance(new, ModalitySpec):
        return new
    if sorted(old.channels) != sorted(new.channels):
        return new
    units = dict(zip(new.channels, new.units, strict=False))
    return replace(new, channels=old.channels, units=tuple(units[name] for name in old.channels if units))
