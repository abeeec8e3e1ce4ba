"""The vocabularies of a data set: those that its source gives, and those learned by a first pass over its codes.

A vocabulary is learned from the training parts of all splits together, so that no split trains on codes without a
number; a code that only other parts have is unknown. The pass holds one count for each different code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from data_shards.crew import Buffer, Crew, in_order
from data_shards.records.schema import DatasetSchema
from data_shards.records.statistics import TRAIN
from data_shards.records.vocabulary import MAX_SEEN, Vocabulary, VocabularyRule

if TYPE_CHECKING:
    from data_shards.sources.base import Source


def vocabularies_of(source: Source, crew: Crew) -> dict[str, Vocabulary]:
    """Modality -> vocabulary, of all modalities of codes; those that the source does not give are learned.

    Raises:
        ValueError: a vocabulary of a modality that has no codes, one that the schema contradicts, or more different
            codes than a vocabulary may have.
    """
    given, own = dict(source.vocabularies), {m.name: m for m in source.schema.modalities if m.kind == "codes"}
    strangers = sorted({*given, *source.vocabulary_rules} - own.keys())
    if strangers:
        raise ValueError(f"source {source.schema.name} has a vocabulary for {', '.join(strangers)}, which has no codes")
    for name, vocabulary in given.items():
        if own[name].vocabulary not in ("", vocabulary.digest):
            raise ValueError(
                f"modality {name}: the schema names vocabulary {own[name].vocabulary[:12]}, the source gives another, "
                f"{vocabulary.digest[:12]}"
            )
    learned = tuple(name for name in own if name not in given)
    declared = [name for name in learned if own[name].vocabulary]
    if declared:
        raise ValueError(f"modality {declared[0]}: the schema names a vocabulary, and the source does not give it")
    return given | (_learned(source, learned, crew) if learned else {})


def with_vocabularies(schema: DatasetSchema, vocabularies: dict[str, Vocabulary]) -> DatasetSchema:
    """The schema with size and digest of each vocabulary."""
    modalities = [
        replace(spec, codes=vocabularies[spec.name].size, vocabulary=vocabularies[spec.name].digest)
        if spec.name in vocabularies
        else spec
        for spec in schema.modalities
    ]
    return replace(schema, modalities=tuple(modalities))


@dataclass(frozen=True)
class _Count:
    """Counts of one unit: modality -> code -> training records that have it."""

    source: Source
    names: tuple[str, ...]

    def __call__(self, unit: Any, buffers: Sequence[Buffer] = ()) -> dict[str, Counter[str]]:
        found = {name: Counter[str]() for name in self.names}
        for splits, codes in self.source.codes(unit):
            if TRAIN in splits.values():
                for name in self.names:
                    found[name].update(set(codes.get(name, ())))
        return found


def _learned(source: Source, names: tuple[str, ...], crew: Crew) -> dict[str, Vocabulary]:
    totals = {name: Counter[str]() for name in names}
    with crew.team({"count": _Count(source, names)}) as team:
        for found in in_order(team, "count", source.units()):
            for name, counts in found.items():
                totals[name].update(counts)
                if len(totals[name]) > MAX_SEEN:
                    raise ValueError(
                        f"modality {name}: the training part has more than {MAX_SEEN} different codes; they look like "
                        "numbers or free text: pack them as another kind, or shorten them to what repeats"
                    )
    rules = source.vocabulary_rules
    return {name: Vocabulary.learned(totals[name], rules.get(name, VocabularyRule())) for name in names}
