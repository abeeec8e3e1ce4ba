"""A data set that was packed in version 1 of the format: read bit for bit as the program of then read it.

``version_1/data`` and ``version_1/batch.st`` were written by that program from forty of
``build.make_record``; no later one can write them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from data_shards import DataConfig, open_manifest
from data_shards.loading.collate import Collator
from data_shards.records.arrays import load_tensors
from data_shards.records.decoder import Decoder
from data_shards.shards.manifest import Manifest
from data_shards.shards.reader import Reader
from data_shards.shards.tar import members
from tests.data_shards.build import make_record, same_record

HERE = Path(__file__).parents[1] / "version_1"


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return open_manifest(str(HERE / "data"))


def test_digests_are_those_of_then(manifest: Manifest) -> None:
    _, then = load_tensors((HERE / "batch.st").read_bytes())
    assert (manifest.version, manifest.digest, manifest.schema.digest()) == (1, then["digest"], then["schema"])


def test_a_batch_is_that_of_then(manifest: Manifest) -> None:
    tensors, then = load_tensors((HERE / "batch.st").read_bytes())
    counts = manifest.counts("default", None)
    chunk_N = np.repeat(np.arange(len(counts)), counts)
    ordinal_N = np.concatenate([np.arange(count) for count in counts])
    records, index_B, skipped = Reader(manifest, DataConfig(url=manifest.url), None).read(chunk_N, ordinal_N)
    batch = Collator(manifest.schema)(records, index_B)
    assert (len(tensors), len(batch), not skipped) == (32, 40, True)
    assert batch.keys == then["keys"].split()
    found: dict[str, Tensor] = batch.tensors()
    for name, wanted in tensors.items():
        got = found[name.replace("|", ":")].numpy()
        assert np.array_equal(got, wanted.astype(got.dtype), equal_nan=got.dtype.kind == "f"), name


def test_records_are_those_that_were_packed(manifest: Manifest) -> None:
    decoder, number = Decoder(manifest.schema), 0
    for shard in manifest.shards:
        data = memoryview((HERE / "data" / shard.name).read_bytes())
        for name, start, size in members(data[: shard.chunks[-1].offset + shard.chunks[-1].length]):
            record = decoder.record(data[start : start + size])
            assert name == f"{record.key}.st"
            assert same_record(record, make_record(number))
            number += 1
    assert number == 40
