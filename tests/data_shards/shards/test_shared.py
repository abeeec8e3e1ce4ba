"""A data set whose chunks the processes of a node share is the same data set."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from data_shards import Batch, DataConfig, ManifestError, StepLoader, open_manifest
from data_shards.loading import loader as loader_module
from data_shards.node_arrays import NodeArrays
from data_shards.shards import tables
from tests.data_shards.build import make_set
from tests.data_shards.forge import edit_head, edit_table


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every data set has very many chunks."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(tables, "SHARED_ABOVE", 0)


def batches(url: str, workers: int, part: str = "train", split: str = "default") -> list[tuple[int, list[str]]]:
    config = DataConfig(url=url, split=split, workers=workers, window_chunks=2, seed=3)
    loader = StepLoader(open_manifest(url), config, part, batch_size=7, rank=0, world=2)
    steps = [step for epoch in (0, 1) for step in loader.steps(epoch)]
    loader.close()
    return [(step.position.offset, [key for batch in step.micro_batches for key in batch.keys]) for step in steps]


def test_it_is_read_in_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "set")
    make_set(Path(url), 60)
    alone = open_manifest(url)
    expected = batches(url, 0)
    others = {own: batches(url, 0, *own) for own in (("val", "default"), ("train", "other"))}
    assert sum(len(keys) for _, keys in expected) > 30
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(tables, "SHARED_ABOVE", 0)
    found = open_manifest(url)
    assert list(found.shards) == list(alone.shards) and found.shards[-1] == alone.shards[len(alone.shards) - 1]
    assert [list(shard.chunks) for shard in found.shards] == [list(shard.chunks) for shard in alone.shards]
    assert found.chunks.shared is not None and alone.chunks.shared is None
    assert found.chunks.sums() == alone.chunks.sums()
    assert batches(url, 0) == batches(url, 2) == expected
    made = [path.name for path in next(tmp_path.glob("fleximoe-*")).iterdir()]
    # Tables, first numbers, and an order for each epoch.
    assert len(made) == 1 + 1 + 2 + 1 and "making.lock" in made
    # Each part of each split has its own.
    assert {own: batches(url, 0, *own) for own in others} == others and expected not in others.values()


def test_only_a_place_travels_to_a_loaders_process(shared: None, tmp_path: Path) -> None:
    url = str(tmp_path / "set")
    make_set(Path(url), 60)
    manifest = open_manifest(url)
    own = StepLoader(manifest, DataConfig(url=url), "train", batch_size=7)
    data = pickle.dumps(own._steps)
    there = pickle.loads(data)  # noqa: S301 - ours
    assert isinstance(there.data.manifest.chunks.shared, NodeArrays)
    assert there.data.manifest.chunks.shared.path == manifest.chunks.shared.path  # type: ignore[union-attr]
    np.testing.assert_array_equal(there.data.counts, own.part.counts)  # type: ignore[union-attr]
    for name in ("offset_K", "parts_KC", "start_K", "samples_KC"):
        assert not getattr(there.data.manifest.chunks, name).flags.writeable
    assert loader_module.Batch is Batch


def test_faults_are_found_by_whoever_makes_it_and_again_by_the_next(shared: None, tmp_path: Path) -> None:
    url = str(tmp_path / "set")
    make_set(Path(url), 60)
    edit_table(Path(url), "chunks", lambda rows: rows[1].update(offset=7))
    for _ in range(2):
        with pytest.raises(ManifestError, match="chunk 1: bytes 7"):
            open_manifest(url)


def test_a_head_that_does_not_fit_shared_tables_is_refused(shared: None, tmp_path: Path) -> None:
    url = str(tmp_path / "set")
    make_set(Path(url), 60)
    open_manifest(url)
    edit_head(Path(url), records=61)
    with pytest.raises(ManifestError, match="61 records, but the shards hold another number"):
        open_manifest(url)
