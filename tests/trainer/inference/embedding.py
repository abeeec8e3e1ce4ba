"""Data sets embedded in this process, as `embed` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_shards import Manifest, open_manifest
from data_shards.packing.remake import remake
from data_shards.packing.shard_maker import ShardMaker
from data_shards.shards.lineage import Lineage
from data_shards.shards.storage import Storage
from trainer.config.encoders import PretrainedConfig
from trainer.inference.embedder import Embedder, embedded_from
from trainer.models.pretrained.load import load_encoder


def embed(data: Path, out: Path, sources: Mapping[str, Path], tokens: Mapping[str, Any] | None = None) -> Manifest:
    """The data set with vectors of these encoders."""
    old = open_manifest(str(data))
    encoders = {
        name: load_encoder(
            old.schema.modalities[old.schema.numbers[name]],
            PretrainedConfig(source=str(source), tokens=(tokens or {}).get(name, "pooled")),
        ).eval()
        for name, source in sources.items()
    }
    embedder = Embedder(old.schema, encoders)
    said, of = embedded_from(old.schema, old.digest, encoders)
    maker = ShardMaker(old, embedder.schema, Storage(str(out)), embedder)
    lineage = Lineage(embedded=said)
    return remake(old, str(out), embedder.schema, lineage, of, lambda tasks: map(maker, tasks), "embedding")[0]
