"""Which rows of a batch each encoder reads.

An encoder serves the modalities of a batch group, but for those that have an encoder of their own: each of these is a
group by itself, behind the others. Rows of a group are sorted by modality, so a modality's are one stretch of it, and a
group without some of its modalities is a few stretches: where they begin is known on the CPU, and nothing is looked up.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from data_shards import Batch, DatasetSchema, Group, group_layout

OWN = "own/"


def encoder_layout(schema: DatasetSchema, own: Collection[str]) -> dict[str, list[int]]:
    """Encoder group -> numbers of its modalities: batch groups without those of `own`, then one for each of these.

    Raises:
        ValueError: `own` names a modality that is not there.
    """
    for name in sorted(own):
        if name not in schema.numbers:
            raise ValueError(
                f"model.encoders.{name}: data set {schema.name} has no modality {name}; it has "
                f"{', '.join(schema.modality_names)}"
            )
    layout = {}
    for group, numbers in group_layout(schema).items():
        shared = [number for number in numbers if schema.modality_names[number] not in own]
        if shared:
            layout[group] = shared
    return layout | {f"{OWN}{name}": [schema.numbers[name]] for name in sorted(own)}


def module_name(group: str) -> str:
    """Group ids contain slashes and sizes (`image/1x8x8`); module names must not contain dots."""
    return group.replace("/", "_").replace(".", "_")


@dataclass(frozen=True)
class Cut:
    """Stretches of a batch group, and of what its rows hold (bytes, samples) where that has offsets.

    `group` is the name of the batch group; `rows` is None where all of it is meant.
    """

    group: str
    rows: tuple[tuple[int, int], ...] | None
    content: tuple[tuple[int, int], ...]


def cuts_of(batch: Batch, schema: DatasetSchema, layout: Mapping[str, Sequence[int]]) -> dict[str, Cut]:
    """Of every encoder group, from a batch on the CPU."""
    found = {}
    whole = group_layout(schema)
    for name, numbers in layout.items():
        source = schema.modalities[numbers[0]].group
        if list(numbers) == whole[source]:
            found[name] = Cut(source, None, ())
            continue
        group: Any = batch.groups[source]
        edges = torch.tensor([[number, number + 1] for number in numbers], device="cpu")
        rows = _joined(torch.searchsorted(group.modality_P, edges).tolist())
        content: list[tuple[int, int]] = []
        if hasattr(group, "offsets"):
            content = [(int(group.offsets[start]), int(group.offsets[stop])) for start, stop in rows]
        found[name] = Cut(source, tuple(rows), tuple(content))
    return found


def cut_group(group: Group, cut: Cut) -> Group:
    """The rows that are meant, on any device; nobody waits for it."""
    if cut.rows is None:
        return group
    return replace(group, **{field.name: _taken(group, field.name, cut) for field in fields(group)})


def _joined(stretches: list[list[int]]) -> list[tuple[int, int]]:
    """Neighbours as one, without empty ones; one empty stretch where nothing is left."""
    found: list[tuple[int, int]] = []
    for start, stop in stretches:
        if start == stop:
            continue
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found or [(0, 0)]


def _taken(group: Any, name: str, cut: Cut) -> torch.Tensor:
    value: torch.Tensor = getattr(group, name)
    assert cut.rows is not None
    if name == "offsets":
        return _offsets(value, cut)
    # Columns end in the dimension that they have a row for: pairs or objects, or what these hold.
    held = name.rsplit("_", 1)[-1].startswith("O")
    parts = [value[start:stop] for start, stop in (cut.content if held else cut.rows)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _offsets(offsets: torch.Tensor, cut: Cut) -> torch.Tensor:
    assert cut.rows is not None
    ends = list(itertools.accumulate((stop - start for start, stop in cut.content), initial=0))
    parts = [
        offsets[start : stop + 1] - (first - before)
        for (start, stop), (first, _), before in zip(cut.rows, cut.content, ends[:-1], strict=True)
    ]
    # The end of a stretch is the beginning of the next.
    return torch.cat([parts[0], *(part[1:] for part in parts[1:])])
