"""The order of data that have grown by `append`: of every version each sample once an epoch, through stops at any place
and with ranks that come and go. Bytes are really read; the reference is a plain list made from the records."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from data_shards import DataConfig, DatasetSchema, ModalitySpec, Record, StepLoader, TaskSpec, open_manifest, pack
from data_shards.records.record import sample_name
from data_shards.shards.versions import versions_of
from tests.data_shards.build import ListSource
from tests.data_shards.loading.test_order import slow_sequence

WORLDS, EPOCHS, STOPS, WINDOW, SEED = 17, 20, 70, 3, 11
ENDS = (20, 31, 60)  # records of each version
SIZES = {"chunk_records": 4, "shard_bytes": 12_000}
SCHEMA = DatasetSchema(
    "moments", (ModalitySpec("x", "vector", shape=(1,)),), (TaskSpec("t", "binary", timed=True, time_unit="hours"),)
)


def record(number: int) -> Record:
    """Some are seen at no moment but their end, others at up to three."""
    moments = np.arange(1, 1 + (0, 1, 3)[number % 3], dtype=np.float32)
    values = {"x": np.array([number], np.float32)}
    part = ("train", "val", "train", "train", "test")[number % 5]
    return Record(f"r{number:03d}", values, {"t": np.ones(max(1, len(moments)))}, {"default": part}, None, moments)


RECORDS = [record(number) for number in range(ENDS[-1])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Packed in three steps."""
    found = str(tmp_path_factory.mktemp("grown"))
    for start, stop in zip((0, *ENDS), ENDS, strict=False):
        pack(ListSource(SCHEMA, RECORDS[start:stop]), found, append=start > 0, **SIZES)  # type: ignore[arg-type]
    return found


def chunks_by_hand(url: str) -> list[list[str]]:
    """Training samples of each chunk: records in the order in which they were given, cut as the tables say."""
    records, found = iter(RECORDS), []
    for shard in open_manifest(url).shards:
        for chunk in shard.chunks:
            own = [next(records) for _ in range(chunk.records)]
            found.append([name for record in own if record.splits["default"] == "train" for name in named(record)])
    return found


def named(record: Record) -> list[str]:
    return [sample_name(record.key, float(time)) for time in (record.moments if len(record.moments) else [0.0])]


def by_hand(chunks: list[list[str]], epoch: int) -> list[str]:
    """The whole epoch as a list."""
    return [chunks[chunk][number] for chunk, number in slow_sequence([len(c) for c in chunks], SEED, epoch, WINDOW)]


def taken(url: str, world: int, size: int, by_tokens: bool, epoch: int, offset: int, steps: int) -> list[list[str]]:
    """What all ranks of a job that begins at this place get in some steps, read from the shards; and the next place."""
    manifest, config = open_manifest(url), DataConfig(url=url, window_chunks=WINDOW, seed=SEED)
    ranks = []
    for rank in range(world):
        loader = StepLoader(manifest, config, "train", size, rank, world)
        if by_tokens:
            loader.deal_by_tokens(np.arange(loader.samples, dtype=np.int32) * 7919 % 50 + 1)
        ranks.append(loader.steps(epoch, offset))
    found = []
    for _ in range(steps):
        own = [next(rank) for rank in ranks]
        assert {step.position.offset for step in own} == {offset + own[0].samples}
        found.append([name for step in own for batch in step.micro_batches for name in batch.names()])
        offset += own[0].samples
    return found


@pytest.mark.long
@pytest.mark.parametrize("world", range(1, WORLDS + 1))
@pytest.mark.parametrize("version", range(len(ENDS)))
def test_every_sample_of_every_version_once_an_epoch(folder: str, version: int, world: int) -> None:
    """20 epochs, up to 70 stops: at first so many ranks, after each stop others, with other steps, dealt otherwise."""
    url, rng = versions_of(folder)[version].url, np.random.default_rng((version, world))
    chunks = chunks_by_hand(url)
    everything = sorted(name for chunk in chunks for name in chunk)
    epochs = {epoch: by_hand(chunks, epoch) for epoch in range(EPOCHS)}
    assert everything == sorted(
        name for one in RECORDS[: ENDS[version]] if one.splits["default"] == "train" for name in named(one)
    )
    assert all(sorted(names) == everything for names in epochs.values())
    total, seen, place = len(everything), {epoch: list[str]() for epoch in epochs}, 0
    stops = sorted(rng.choice(np.arange(1, EPOCHS * total), STOPS, replace=False).tolist())
    for stop in [*stops, EPOCHS * total]:
        size, by_tokens = int(rng.integers(1, total // 2)), bool(rng.integers(2))
        while place < stop:  # to the end of the step that reaches it, epoch by epoch
            epoch, offset = divmod(place, total)
            steps = -(-(min(stop, (epoch + 1) * total) - place) // size)
            for got in taken(url, world, size, by_tokens, epoch, offset, steps):
                assert sorted(got) == sorted(epochs[epoch][offset : offset + size]), (world, epoch, offset)
                seen[epoch] += got
                offset += len(got)
            place = epoch * total + offset
        world = int(rng.integers(1, WORLDS + 1))
    assert all(Counter(names) == Counter(everything) for names in seen.values())  # nothing lost, nothing repeated
