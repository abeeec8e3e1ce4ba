"""Which records lack a modality, from the shards' indexes alone: no record is read."""

from __future__ import annotations

from data_shards.shards.manifest import Manifest
from data_shards.shards.reader import read_index


def first_without(manifest: Manifest, split: str, part: str, modality: str) -> tuple[str, int] | None:
    """Key of the first record of a part that does not have the modality, and how many there are; None if all have it.

    Raises:
        ShardError: an index cannot be read. ValueError: no such split or part.
    """
    column, number = manifest.column(split, part), manifest.schema.numbers[modality]
    first, lost = None, 0
    for shard in range(len(manifest.shards)):
        index = read_index(manifest, shard)
        rows = (index.members(column) & ~index.present[:, number]).nonzero()[0]
        if first is None and len(rows):
            first = index.keys[int(rows[0])]
        lost += len(rows)
    return None if first is None else (first, lost)
