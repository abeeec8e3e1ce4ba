"""A sample is a moment of a record: each comes once, in an order of its own, whoever reads it and wherever it stops."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards import Batch, DataConfig, Manifest, ShardError, StepLoader, open_data, open_manifest
from data_shards.loading.collate import Collator
from data_shards.records.decoder import Decoder
from data_shards.shards.reader import Reader, read_index
from tests.data_shards import moments
from tests.data_shards.build import make_record, make_set
from tests.data_shards.moments import make_moments, names

RECORDS = 40
TRAIN = names(RECORDS)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_moments(tmp_path_factory.mktemp("moments"), RECORDS)


def loader(manifest: Manifest, batch_size: int = 32, part: str = "train", **options: object) -> StepLoader:
    fields = {name: options.pop(name) for name in list(options) if name in DataConfig.model_fields}
    config = DataConfig(url=manifest.url, window_chunks=3, **fields)  # type: ignore[arg-type]
    return StepLoader(manifest, config, part, batch_size, **options)  # type: ignore[arg-type]


def given(steps: object) -> list[list[str]]:
    return [[name for batch in step.micro_batches for name in batch.names()] for step in steps]  # type: ignore[attr-defined]


def flat(steps: object) -> list[str]:
    return [name for step in given(steps) for name in step]


def test_samples_are_moments_and_one_for_a_record_without(manifest: Manifest) -> None:
    train = loader(manifest)
    assert train.samples == len(TRAIN) == len(set(TRAIN)) == int(manifest.counts("default", "train").sum())
    assert len(TRAIN) > 200 > manifest.splits["default"]["train"] == 24
    steps = list(train.steps(0))
    assert sorted(flat(steps)) == sorted(TRAIN) and flat(steps) != TRAIN
    assert len(steps) == train.steps_per_epoch == -(-len(TRAIN) // 32)
    assert sum(step.samples for step in steps) == steps[-1].position.offset == len(TRAIN)
    assert given(train.steps(1)) != given(steps)


def test_storage_order_is_by_record_then_by_moment(manifest: Manifest) -> None:
    assert flat(loader(manifest, 7, part="test", shuffle=False).steps(0)) == names(RECORDS, "test")
    whole = Reader(manifest, DataConfig(url=manifest.url), None)
    counts = manifest.counts("default", None)
    chunk_N = np.repeat(np.arange(len(counts)), counts)
    found, index_B, _ = whole.read(chunk_N, np.concatenate([np.arange(count) for count in counts.tolist()]))
    assert [f"{one.key}@{one.moments_K[0]}" for one in found] == names(RECORDS, None)
    assert [f"r{number:03d}" for number in index_B.tolist()] == [one.key for one in found]


@pytest.mark.parametrize("world", range(1, 18))
def test_global_batches_do_not_depend_on_the_world(manifest: Manifest, world: int) -> None:
    alone = given(loader(manifest).steps(3))
    ranks = [given(loader(manifest, rank=r, world=world, accumulation=1 + world % 2).steps(3)) for r in range(world)]
    assert [sorted(name for own in ranks for name in own[t]) for t in range(len(alone))] == list(map(sorted, alone))


def test_resuming_anywhere_at_any_world_size(manifest: Manifest) -> None:
    """Also in the middle of a record, as positions count moments."""
    rng = np.random.default_rng(0)
    for _ in range(6):
        seen, offset = list[str](), 0
        while offset < len(TRAIN):
            world, size = int(rng.integers(1, 18)), int(rng.integers(1, 60))
            ranks = [loader(manifest, size, rank=r, world=world).steps(2, offset) for r in range(world)]
            for _ in range(int(rng.integers(1, 4))):
                together = [next(steps, None) for steps in ranks]
                if together[0] is None:
                    break
                seen += flat(together)
                offset = together[0].position.offset
        assert sorted(seen) == sorted(TRAIN)


def test_worker_processes_change_nothing(manifest: Manifest) -> None:
    inside, outside = loader(manifest, accumulation=2), loader(manifest, accumulation=2, workers=2)
    pairs = list(zip(inside.steps(0, 5), outside.steps(0, 5), strict=True))
    assert len(pairs) > 5
    for a, b in pairs:
        for x, y in zip(a.micro_batches, b.micro_batches, strict=True):
            assert x.names() == y.names() and all(
                torch.equal(s.nan_to_num(-1), t.nan_to_num(-1))
                for s, t in zip(x.tensors().values(), y.tensors().values(), strict=True)
            )
    outside.close()


def test_a_batch_knows_its_moments_and_their_labels(manifest: Manifest) -> None:
    for step in loader(manifest).steps(0):
        batch: Batch = step.micro_batches[0]
        assert batch.moment_B is not None and batch.moment_B.dtype == torch.float32
        for row, (key, moment) in enumerate(zip(batch.keys, batch.moment_B.tolist(), strict=True)):
            own = moments.record(int(key[1:]))
            k = int(np.flatnonzero(own.moments == np.float32(moment))[0]) if len(own.moments) else 0  # type: ignore[arg-type]
            wanted = [own.targets[name][k] for name in ("sepsis", "rest")] + [own.targets["died"]]  # type: ignore[index]
            found = [batch.targets[name][row, 0] for name in ("sepsis", "rest", "died")]
            assert np.allclose(found, np.array(wanted, np.float32), equal_nan=True)


def test_a_record_is_decoded_once_while_its_chunk_is_in_memory(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: Counter[str | None] = Counter()
    plain = Decoder.columns

    def counting(self: Decoder, buffer: bytes | memoryview, key: str | None = None) -> object:
        decoded[key] += 1
        return plain(self, buffer, key)

    monkeypatch.setattr(Decoder, "columns", counting)
    assert len(flat(loader(manifest, 4).steps(0))) == len(TRAIN)
    assert set(decoded.values()) == {1} and len(decoded) == 24


def test_what_the_index_says_of_samples(manifest: Manifest) -> None:
    indexes = [read_index(manifest, number) for number in range(len(manifest.shards))]
    assert len(indexes) > 1
    column = manifest.column("default", "train")
    assert [name for index in indexes for name in index.names(column)] == TRAIN
    assert all(len(index.times_K) == len(index.targets_KW) == index.moments_n.sum() for index in indexes)


def damaged(folder: Path) -> str:
    """One byte of a record with many moments is wrong; its key."""
    manifest = make_moments(folder, RECORDS)
    index = read_index(manifest, 0)
    row = int(np.flatnonzero(index.members(manifest.column("default", "train")) * index.moments_n > 30)[0])
    path = folder / manifest.shards[0].name
    data = bytearray(path.read_bytes())
    data[int(index.start_n[row]) + int(index.size_n[row]) - 1] ^= 1
    path.write_bytes(data)
    return index.keys[row]


def test_of_a_damaged_record_all_moments_are_skipped_and_counted(tmp_path: Path) -> None:
    key = damaged(tmp_path)
    lost = [name for name in TRAIN if name.startswith(f"{key}@")]
    assert len(lost) > 30
    train = loader(open_manifest(str(tmp_path)), on_error="skip", max_skipped=100)
    seen = flat(train.steps(0))
    assert sorted(seen + lost) == sorted(TRAIN) and dict(train.skipped) == {"checksum": len(lost)}
    with pytest.raises(ShardError, match=rf"record {key}|CRC-32"):
        flat(loader(open_manifest(str(tmp_path))).steps(0))


@pytest.mark.parametrize("world", [1, 2, 5])
def test_a_mixture_with_and_without_moments(manifest: Manifest, tmp_path: Path, world: int) -> None:
    """Moments of one data set, records of the other: each once an epoch, and moments are NaN where there are none."""
    make_set(tmp_path, 50)
    whole = [f"plain/{make_record(i).key}" for i in range(50) if make_record(i).splits["default"] == "train"]
    entries = {"hourly": {"url": manifest.url}, "plain": {"url": str(tmp_path)}}
    config = DataConfig.model_validate({"mixture": entries, "window_chunks": 3})
    data = open_data(config)
    ranks = [StepLoader(data, config, "train", 24, rank, world) for rank in range(world)]
    assert ranks[0].samples == len(TRAIN) + len(whole)
    seen = [name for rank in ranks for name in flat(rank.steps(0, 0))]
    assert sorted(seen) == sorted([*(f"hourly/{name}" for name in TRAIN), *whole])
    for step in ranks[0].steps(1):
        for batch in step.micro_batches:
            assert batch.moment_B is not None
            assert batch.moment_B.isnan().tolist() == [key.startswith("plain/") for key in batch.keys]
            again = Batch.from_buffer(batch.to_buffer())
            assert again.names() == batch.names()


def test_no_sample_of_a_rank_has_the_same_tensors(manifest: Manifest) -> None:
    empty = Collator(manifest.schema)([], np.empty(0, np.int64))
    assert empty.moment_B is not None and empty.moment_B.shape == (0,) and empty.names() == []
