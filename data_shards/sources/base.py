"""What every source offers."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from data_shards.crew import Crew
from data_shards.errors import PathError
from data_shards.paths import absolute_path
from data_shards.records.record import Codes, Record
from data_shards.records.schema import DatasetSchema
from data_shards.records.vocabulary import Vocabulary, VocabularyRule


class SourceOptions(BaseModel):
    """Options of a source; each subclass adds its own.

    They are kept as they were typed, also in the manifest; what names a file is read with `paths.absolute_path`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(ABC):
    """Gives records of one schema, in work units that can be read in different processes.

    Attributes:
        schema: of every record; whole once ``units`` was called.
        options: what it was made with; the source can be pickled to a worker process of the packer.
        vocabularies: modality of codes -> vocabulary that is given; the others are learned from the training part.
        vocabulary_rules: modality -> how its vocabulary is learned. Both whole once ``units`` was called.
    """

    Options: ClassVar[type[SourceOptions]] = SourceOptions
    schema: DatasetSchema
    vocabularies: Mapping[str, Vocabulary] = MappingProxyType({})
    vocabulary_rules: Mapping[str, VocabularyRule] = MappingProxyType({})

    def __init__(self, options: SourceOptions) -> None:
        self.options = options

    def prepare(self, crew: Crew) -> None:  # noqa: B027 - most sources have nothing to do
        """What ``units`` needs and many can do together, e.g. sort rows out by record; once, before ``units``."""

    @abstractmethod
    def units(self) -> Sequence[Any]:
        """Work units in order; the same for any number of processes."""

    @abstractmethod
    def read(self, unit: Any, notes: Counter[str]) -> Iterator[Record]:
        """Records of one unit; what is left out or odd is counted in ``notes``."""

    def codes(self, unit: Any) -> Iterator[tuple[Mapping[str, str], Mapping[str, Sequence[str]]]]:
        """(splits, modality -> codes) of each record of a unit, for the first pass, which learns vocabularies.

        A source that can have them without reading whole records should say so here.
        """
        for record in self.read(unit, Counter()):
            yield record.splits, {name: own.codes for name, own in record.values.items() if isinstance(own, Codes)}

    def report(self, notes: Counter[str]) -> dict[str, Any]:
        """Plain data for the manifest: options and what was counted."""
        return {"options": self.options.model_dump(mode="json"), "notes": dict(sorted(notes.items()))}

    def fingerprint(self) -> str | None:
        """Text of what its records depend on: a pack that was killed is continued only if it is the same.

        The source's name and options, and of files and folders that an option names lengths and times of change. A
        source with further files adds those; one whose records nobody else can read says None, and is never continued.
        """
        options = self.options.model_dump(mode="json")
        files = [described_files(value) for value in options.values() if isinstance(value, str)]
        return json.dumps([f"{type(self).__module__}.{type(self).__qualname__}", options, files])

    def records(self) -> Iterator[Record]:
        """All records in order."""
        notes: Counter[str] = Counter()
        for unit in self.units():
            yield from self.read(unit, notes)


def described_files(place: str) -> list[tuple[str, int, int]]:
    """(path, bytes, nanoseconds of its last change) of a file, or of all below a folder; empty if nothing is there."""
    try:
        root = absolute_path(place)
        paths = sorted(root.rglob("*")) if root.is_dir() else [root]
        found = [(str(path), path.stat()) for path in paths if path.is_file()]
    except (PathError, OSError):
        return []
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in found]


def hashed_part(key: str, shares: Sequence[tuple[str, float]], salt: str = "") -> str:
    """A part chosen by the hash of the key: stable under any change of the other records.

    Args:
        key: of the record (or of its group). shares: (part, share) with shares that add up to 1. salt: e.g. a seed.
    """
    digest = hashlib.blake2b(f"{salt}|{key}".encode(), digest_size=8).digest()
    place, total = int.from_bytes(digest, "little") / 2**64, 0.0
    for part, share in shares:
        total += share
        if place < total:
            return part
    return shares[-1][0]
