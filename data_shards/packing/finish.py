"""The head of a data set, from its shards and what was counted: tables, vocabularies, and the manifest's bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from data_shards.packing.sealed import Sealed, tables_of_sealed
from data_shards.packing.units.totals import Totals
from data_shards.records.vocabulary import Vocabulary
from data_shards.shards.head import Head, head_bytes, opened, table_file, tables_of
from data_shards.shards.lineage import Lineage
from data_shards.shards.manifest import Manifest, TableFile
from data_shards.shards.storage import Storage


def finish(
    storage: Storage,
    totals: Totals,
    sealed: Sequence[Sealed],
    report: Mapping[str, Any],
    vocabularies: Mapping[str, Vocabulary],
    lineage: Lineage,
) -> tuple[Manifest, bytes, dict[str, bytes]]:
    """The data set, the bytes of its head, and of the files that the head names. Nothing is written.

    Args:
        report: of the source. vocabularies: of each modality of codes.

    Raises:
        ValueError: there is no record.
    """
    schema = totals.schema
    if not sealed:
        raise ValueError(f"source {schema.name} gave no record; nothing to pack")
    shards, chunks = tables_of_sealed(sealed, len(totals.columns), schema.has_moments)
    splits: dict[str, dict[str, int]] = {}
    for (split, part), c in sorted(totals.columns.items()):
        splits.setdefault(split, {})[part] = int(chunks.parts_KC[:, c].sum())
    statistics = {split: a for split, a in sorted(totals.statistics.items()) if a.records}
    source = totals.with_lengths(dict(report))
    tables, files = tables_of(shards, chunks, statistics, schema.has_moments)
    entries: dict[str, TableFile] = {}
    for name, vocabulary in vocabularies.items():
        data = vocabulary.to_bytes()
        entries[name] = table_file("vocabulary", data, vocabulary.rows)
        files[entries[name].name] = data
    head = Head(
        schema=schema,
        source=source,
        records=totals.records,
        samples=int(chunks.total_K.sum()),
        observations=totals.observations,
        columns=tuple(totals.columns),
        splits=splits,
        statistics={split: accumulator.summary() for split, accumulator in statistics.items()},
        tables=tables,
        vocabularies=entries,
        lineage=lineage,
    )
    text = head_bytes(head)
    return opened(head, hashlib.sha256(text).hexdigest(), shards, chunks, storage), text, files
