"""Steps of a rank: the same global batches everywhere, exactly once, whatever the workers; positions resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards import Batch, DataConfig, Manifest, Position, ShardError, StepLoader, open_manifest
from data_shards.shards.reader import Reader
from tests.data_shards.build import make_record, make_set

RECORDS = 90
TRAIN = sorted(f"r{i:05d}" for i in range(RECORDS) if make_record(i).splits["default"] == "train")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_set(tmp_path_factory.mktemp("set"), RECORDS)


def loader(manifest: Manifest, batch_size: int = 16, part: str = "train", **options: object) -> StepLoader:
    fields = {name: options.pop(name) for name in list(options) if name in DataConfig.model_fields}
    config = DataConfig(url=manifest.url, window_chunks=4, **fields)  # type: ignore[arg-type]
    return StepLoader(manifest, config, part, batch_size, **options)  # type: ignore[arg-type]


def keys(steps: object) -> list[list[str]]:
    return [[key for batch in step.micro_batches for key in batch.keys] for step in steps]  # type: ignore[attr-defined]


def flat(steps: object) -> list[str]:
    return [key for step in keys(steps) for key in step]


@pytest.mark.parametrize("world", [1, 2, 3, 5, 8, 17])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_global_batches_do_not_depend_on_world_or_accumulation(
    manifest: Manifest, world: int, accumulation: int
) -> None:
    alone = keys(loader(manifest).steps(4))
    ranks = [list(loader(manifest, rank=r, world=world, accumulation=accumulation).steps(4)) for r in range(world)]
    assert {len(steps) for steps in ranks} == {len(alone)}
    for t, expected in enumerate(alone):
        micro = [batch for steps in ranks for batch in steps[t].micro_batches]
        assert len(micro) == world * accumulation
        assert sorted(key for batch in micro for key in batch.keys) == sorted(expected)
        assert {steps[t].samples for steps in ranks} == {len(expected)}
        assert len({steps[t].position for steps in ranks}) == 1


def test_an_epoch_delivers_every_record_once(manifest: Manifest) -> None:
    train = loader(manifest)
    steps = list(train.steps(0))
    assert sorted(flat(steps)) == TRAIN
    assert train.samples == len(TRAIN) == 54 and len(steps) == train.steps_per_epoch == 4
    assert steps[-1].position == Position(0, 54) and steps[-1].samples == 54 - 3 * 16
    assert [sorted(k) for k in keys(train.steps(1))] != [sorted(k) for k in keys(steps)]


def test_resuming_anywhere_at_any_world_size(manifest: Manifest) -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        seen, offset = list[str](), 0
        while offset < len(TRAIN):
            world, size = int(rng.integers(1, 9)), int(rng.integers(1, 25))
            ranks = [loader(manifest, size, rank=r, world=world).steps(2, offset) for r in range(world)]
            for _ in range(int(rng.integers(1, 4))):
                together = [next(steps, None) for steps in ranks]
                if together[0] is None:
                    break
                seen += flat(together)
                offset = together[0].position.offset
        assert sorted(seen) == TRAIN


def equal(a: Batch, b: Batch) -> bool:
    return a.keys == b.keys and all(
        torch.equal(x.nan_to_num(-1), y.nan_to_num(-1))
        for x, y in zip(a.tensors().values(), b.tensors().values(), strict=True)
    )


def test_worker_processes_change_nothing(manifest: Manifest) -> None:
    """Also after a pass that was left early, in the next epoch, and from an offset."""
    inside, outside = loader(manifest, accumulation=2), loader(manifest, accumulation=2, workers=2, prefetch=3)
    left = outside.steps(0)
    next(left)
    del left
    for epoch, offset in ((0, 0), (1, 7)):
        pairs = list(zip(inside.steps(epoch, offset), outside.steps(epoch, offset), strict=True))
        assert pairs
        for a, b in pairs:
            assert (a.samples, a.position, a.skipped) == (b.samples, b.position, b.skipped)
            assert all(equal(x, y) for x, y in zip(a.micro_batches, b.micro_batches, strict=True))
    outside.close()


def failure(train: StepLoader) -> ShardError:
    """The error that one epoch ends with; nothing keeps the workers alive afterwards."""
    try:
        list(train.steps(0))
    except ShardError as error:
        return error.with_traceback(None)
    finally:
        train.close()
    raise AssertionError("the epoch ended without an error")


def test_errors_of_workers_keep_their_type_and_place(tmp_path: Path) -> None:
    manifest = make_set(tmp_path, 20)
    (tmp_path / manifest.shards[0].name).unlink()
    error = failure(loader(manifest, workers=1))
    assert "cannot be read" in str(error)
    assert error.shard == manifest.shards[0].name and error.chunk is not None and error.start is not None
    error = failure(loader(manifest, on_error="skip", max_skipped=2))
    assert error.reason == "limit" and "data.max_skipped is 2" in str(error)


def test_evaluation_takes_storage_order(manifest: Manifest) -> None:
    evaluation = loader(manifest, 5, part="test", shuffle=False)
    found = flat(evaluation.steps(0))
    assert found == sorted(found) and len(found) == evaluation.samples == 18
    numbers = [n for step in evaluation.steps(0) for n in step.micro_batches[0].index_B.tolist()]
    assert numbers == [int(key[1:]) for key in found]  # record numbers count from 0 in storage order


def test_more_ranks_than_records_give_empty_batches(manifest: Manifest) -> None:
    steps = [list(loader(manifest, 3, part="val", rank=r, world=7).steps(0)) for r in range(7)]
    assert {len(s) for s in steps} == {6}
    assert [len(s[0].micro_batches[0]) for s in steps] == [1, 1, 1, 0, 0, 0, 0]


def test_another_split_and_seed(manifest: Manifest) -> None:
    other = loader(manifest, split="other")
    assert sorted(flat(other.steps(0))) == [
        f"r{i:05d}" for i in range(RECORDS) if make_record(i).splits.get("other") == "train"
    ]
    assert keys(loader(manifest, seed=1).steps(0)) != keys(loader(manifest, seed=2).steps(0))


def test_an_epoch_that_is_done_gives_no_step(manifest: Manifest) -> None:
    assert list(loader(manifest).steps(0, 54)) == []


@pytest.mark.parametrize("offset", [-1, 55])
def test_offsets_outside_the_epoch(manifest: Manifest, offset: int) -> None:
    with pytest.raises(ValueError, match="outside the epoch's 0 to 54"):
        next(loader(manifest).steps(0, offset))


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"accumulation": 0}, {"rank": 2, "world": 2}])
def test_illegal_arguments(manifest: Manifest, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        loader(manifest, **options)  # type: ignore[arg-type]


def test_memory_data_cannot_cross_processes() -> None:
    manifest = make_set("memory://loader-test", 10)
    assert sum(len(k) for k in keys(loader(manifest).steps(0))) == 6
    with pytest.raises(ValueError, match="lives in one process only"):
        loader(manifest, workers=1)


def test_chunks_are_read_once_per_window_and_memory_is_bounded(manifest: Manifest) -> None:
    train = loader(manifest, 4)
    reads = sum(step.io.get("reads", 0) for step in train.steps(0))
    chunks = int((manifest.counts("default", "train") > 0).sum())
    assert reads == chunks + len(manifest.shards)  # each chunk once, each index once


def test_little_memory_costs_reads_not_correctness(manifest: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    config = DataConfig(url=manifest.url, window_chunks=4)
    with caplog.at_level("WARNING", logger="data_shards"):
        small = StepLoader(manifest, config.model_copy(update={"memory_bytes": 20_000}), "train", 16)
    assert "chunks will be read repeatedly" in caplog.text
    assert keys(small.steps(0)) == keys(loader(manifest).steps(0))
    reader = Reader(manifest, config.model_copy(update={"memory_bytes": 20_000}), "train")
    chunk_N = np.flatnonzero(manifest.counts("default", "train"))
    for chunk in chunk_N.tolist():
        reader.read(np.array([chunk]), np.array([0]))
        assert reader.held_bytes <= 20_000


def test_opening_needs_only_the_url(manifest: Manifest) -> None:
    again = open_manifest(manifest.url)
    assert keys(loader(again).steps(0)) == keys(loader(manifest).steps(0))
