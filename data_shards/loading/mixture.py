"""Several data sets as one: their modalities and tasks side by side, their records interleaved in a fixed order.

A mixture looks like one manifest (``Manifest``) to whoever trains. Modalities and tasks are named
``<data set>-<name>``, so that data sets never share one by accident. A record has the modalities and labels of its own
data set; the others are not absent from it, they do not exist for it (``Batch.known_BM``).

In what order its records come, and how they are read: ``mixed_order``.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from data_shards.config import DataConfig
from data_shards.records.schema import DatasetSchema, ModalitySpec, TaskSpec
from data_shards.records.statistics import SplitStatistics
from data_shards.shards.lineage import Embedded
from data_shards.shards.manifest import Manifest


@dataclass(frozen=True)
class Member:
    """One data set of a mixture."""

    name: str
    manifest: Manifest
    split: str
    weight: float
    tasks: tuple[str, ...]

    @cached_property
    def schema(self) -> DatasetSchema:
        """Its modalities and chosen tasks under the mixture's names."""
        own = self.manifest.schema
        modalities = [replace(spec, name=f"{self.name}-{spec.name}") for spec in own.modalities]
        tasks = [replace(own.task(name), name=f"{self.name}-{name}") for name in self.tasks]
        return DatasetSchema(self.name, tuple(modalities), tuple(tasks))

    def config(self, config: DataConfig) -> DataConfig:
        """Reading rules for this data set."""
        return config.model_copy(update={"url": self.manifest.url, "split": self.split, "mixture": {}})


class Mixture:
    """Data sets side by side. Offers what a trainer asks of a ``Manifest``.

    Args:
        members: in the order of the recipe, which is part of the format. split: name under which the parts are found.

    Raises:
        ValueError: fewer than two data sets, an unknown split or task, or names that are too long together.
    """

    def __init__(self, members: list[Member], split: str) -> None:
        if len(members) < 2:
            raise ValueError("a mixture needs two data sets or more; for one, give data.url")
        self.members, self.split = members, split
        for member in members:
            member.manifest.column(member.split, "train")
        modalities: list[ModalitySpec] = [spec for member in members for spec in member.schema.modalities]
        tasks: list[TaskSpec] = [task for member in members for task in member.schema.tasks]
        self.schema = DatasetSchema("-".join(m.name for m in members)[:64], tuple(modalities), tuple(tasks))

    @property
    def embedded(self) -> dict[str, Embedded]:
        """What vectors that pretrained encoders have made were before, under the mixture's names."""
        return {f"{m.name}-{name}": own for m in self.members for name, own in m.manifest.embedded.items()}

    @property
    def url(self) -> str:
        """The places of all data sets, for people."""
        return " + ".join(member.manifest.url for member in self.members)

    @property
    def in_memory(self) -> bool:
        """Whether one of them lives in this process only."""
        return any(member.manifest.in_memory for member in self.members)

    @property
    def largest_chunk(self) -> int:
        """Bytes of the largest chunk of all data sets."""
        return max(member.manifest.largest_chunk for member in self.members)

    @property
    def records(self) -> int:
        """Of all data sets."""
        return sum(member.manifest.records for member in self.members)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the data sets and how they are mixed: the order of records depends on nothing else."""
        parts = [(m.name, m.manifest.digest, m.split, m.weight, m.tasks) for m in self.members]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def splits(self) -> dict[str, dict[str, int]]:
        """Part -> records, over all data sets that have the part."""
        counts: Counter[str] = Counter()
        for member in self.members:
            counts.update(member.manifest.splits[member.split])
        return {self.split: dict(counts)}

    @property
    def statistics(self) -> dict[str, SplitStatistics]:
        """Statistics of every data set's own train part, under the mixture's names."""
        joined = SplitStatistics(0)
        for member in self.members:
            own, prefix = member.manifest.statistics[member.split], f"{member.name}-"
            joined = SplitStatistics(
                joined.records + own.records,
                joined.modalities | {prefix + name: table for name, table in own.modalities.items()},
                joined.tasks | {prefix + name: own.tasks[name] for name in member.tasks},
            )
        return {self.split: joined}

    def column(self, split: str, part: str) -> int:
        """ValueError if no data set has the part; the number means nothing."""
        if split != self.split:
            raise ValueError(f"in a mixture each data set names its own split; data.split={split!r} is not one")
        if part not in self.splits[split]:
            raise ValueError(
                f"no data set of the mixture has a part {part!r}; there are {', '.join(self.splits[split])}"
            )
        return 0


def open_mixture(config: DataConfig, open_one: Any) -> Mixture:
    """The mixture of a data section; ``open_one(url, storage_options)`` opens a manifest."""
    members = []
    for name, entry in config.mixture.items():
        manifest = open_one(entry.url, config.storage_options)
        tasks = entry.tasks if entry.tasks is not None else list(manifest.schema.task_names)
        for task in tasks:
            manifest.schema.task(task)
        members.append(Member(name, manifest, entry.split, entry.weight, tuple(tasks)))
    return Mixture(members, config.split)
