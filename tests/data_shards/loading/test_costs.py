"""What records cost, from indices alone; and what a loader does with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards import DataConfig, Manifest, ShardError, StepLoader, TokenWeights, open_data
from data_shards.loading.costs import UNKNOWN, Held, complete_costs, read_costs
from tests.data_shards.build import SCHEMA, make_record, make_set
from tests.trainer.tiny import packed

RECORDS = 90
TRAIN = [i for i in range(RECORDS) if make_record(i).splits["default"] == "train"]
# Of labs, note, static, picture, ecg, vitals, embedding, history, map.
WEIGHTS = TokenWeights(
    np.array([8.0, 4, 2, 6, 4, 8, 2, 2, 1]),
    np.array([1.0, 1, 1, 1, 1, 1, 1, 1, 1]),
    np.array([0.5, 0.25, 0, 0, 0.1, 0.5, 0, 0, 0]),
)


def tokens_of(number: int) -> int:
    """From the record itself."""
    values, total = make_record(number).values, 0.0
    for m, spec in enumerate(SCHEMA.modalities):
        value = values.get(spec.name)
        if value is None:
            total += WEIGHTS.absent_M[m]
            continue
        length = len(value.encode()) if isinstance(value, str) else len(value)
        total += WEIGHTS.present_M[m] + length * WEIGHTS.unit_M[m]
    return round(total)


EXPECTED = [tokens_of(number) for number in TRAIN]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_set(tmp_path_factory.mktemp("set"), RECORDS)


def loader(manifest: Manifest, batch_size: int = 16, costs: bool = True, **options: object) -> StepLoader:
    fields = {name: options.pop(name) for name in list(options) if name in DataConfig.model_fields}
    config = DataConfig(url=manifest.url, window_chunks=4, **fields)  # type: ignore[arg-type]
    made = StepLoader(manifest, config, "train", batch_size, **options)  # type: ignore[arg-type]
    if costs:
        made.deal_by_tokens(complete_costs(read_costs(made.part, WEIGHTS)))
    return made


def keys(steps: object) -> list[list[str]]:
    return [[key for batch in step.micro_batches for key in batch.keys] for step in steps]  # type: ignore[attr-defined]


def test_weights_by_hand() -> None:
    weights = TokenWeights(np.array([4.0, 2.0, 1.0]), np.array([1.0, 0.0, 0.0]), np.array([0.5, 0.0, 0.0]))
    there_nm = np.array([[True, True], [False, True], [True, False], [False, False]])
    held = Held(there_nm, np.array([[5, 1], [0, 1], [0, 0], [0, 0]]), np.array([[7, 1], [0, 1], [0, 0], [0, 0]]))
    assert weights.tokens(held, np.array([0, 1])).tolist() == [10, 3, 4, 1]  # 9.5 rounds to even
    # The data set's first modality is the model's last: nothing costs nothing, but a record is one token at least.
    assert weights.tokens(held, np.array([2, 1])).tolist() == [3, 2, 1, 1]
    by_object = replace(weights, object_M=np.array([3.0, 0.0, 0.0]), empty_M=np.zeros(3))
    assert by_object.tokens(held, np.array([0, 1])).tolist() == [24, 3, 4, 1]


@pytest.mark.parametrize("world", [1, 2, 3, 50])
def test_ranks_together_know_what_every_record_costs(manifest: Manifest, world: int) -> None:
    part = loader(manifest, costs=False).part
    pieces = [read_costs(part, WEIGHTS, rank, world) for rank in range(world)]
    assert len(manifest.shards) > 1 and sum(len(piece) > 0 for piece in pieces) == min(world, len(manifest.shards))
    assert np.concatenate(pieces).tolist() == EXPECTED
    assert len(set(EXPECTED)) > 10


def test_costs_of_a_mixture(manifest: Manifest, tmp_path: Path) -> None:
    """A data set's records are asked for its own modalities only: those of the other are not absent from them."""
    entries = {"small": {"url": packed(tmp_path), "weight": 1}, "big": {"url": manifest.url}}
    data = DataConfig.model_validate({"mixture": entries, "window_chunks": 4})
    mixed = StepLoader(open_data(data), data, "train", 16, 1, 3)
    others = mixed.samples - len(TRAIN)
    zero = np.zeros(len(mixed._steps.schema.modalities) - 9)
    weights = TokenWeights(*(np.concatenate([zero, w]) for w in (WEIGHTS.present_M, WEIGHTS.absent_M, WEIGHTS.unit_M)))
    cost_N = np.concatenate([read_costs(mixed.part, weights, rank, 2) for rank in range(2)])
    assert cost_N.tolist() == [1] * others + EXPECTED


@pytest.mark.parametrize("world", [1, 2, 3, 5, 17])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_same_global_batches_as_by_records(manifest: Manifest, world: int, accumulation: int) -> None:
    alone = keys(loader(manifest, costs=False).steps(4))
    ranks = [list(loader(manifest, rank=r, world=world, accumulation=accumulation).steps(4)) for r in range(world)]
    cost = {f"r{number:05d}": tokens for number, tokens in zip(TRAIN, EXPECTED, strict=True)}
    for t, expected in enumerate(alone):
        micro = [batch.keys for steps in ranks for batch in steps[t].micro_batches]
        assert len(micro) == world * accumulation
        assert sorted(key for batch in micro for key in batch) == sorted(expected)
        tokens = [sum(cost[key] for key in batch) for batch in micro]
        load = ranks[0][t].load
        assert load is not None and all(steps[t].load == load for steps in ranks)
        assert (load.fullest, load.mean) == (max(tokens), sum(tokens) / len(tokens))
        assert load.record == max(cost[key] for key in expected)
        assert load.fullest <= load.mean + load.record


def test_it_is_more_even_than_by_records(manifest: Manifest) -> None:
    cost = {f"r{number:05d}": tokens for number, tokens in zip(TRAIN, EXPECTED, strict=True)}
    fullest = {}
    for costs in (False, True):
        ranks = [next(iter(loader(manifest, 54, costs, rank=r, world=4).steps(0))) for r in range(4)]
        tokens = [sum(cost[key] for batch in step.micro_batches for key in batch.keys) for step in ranks]
        fullest[costs] = max(tokens) / (sum(tokens) / 4)
    assert fullest[True] < 1.01 < 1.05 < fullest[False]


def test_resuming_anywhere_at_any_world_size_and_from_steps_that_were_dealt_by_records(manifest: Manifest) -> None:
    """A run that an earlier version began goes on at its position: the order has not changed."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        seen, offset = list[str](), 0
        while offset < len(TRAIN):
            world, size, costs = int(rng.integers(1, 9)), int(rng.integers(1, 25)), bool(rng.integers(2))
            ranks = [loader(manifest, size, costs, rank=r, world=world).steps(2, offset) for r in range(world)]
            for _ in range(int(rng.integers(1, 4))):
                together = [next(steps, None) for steps in ranks]
                if together[0] is None:
                    break
                seen += [key for step in keys(together) for key in step]
                offset = together[0].position.offset
        assert sorted(seen) == [f"r{number:05d}" for number in TRAIN]


def test_worker_processes_change_nothing(manifest: Manifest) -> None:
    inside, outside = (loader(manifest, accumulation=2, rank=1, world=2, workers=workers) for workers in (0, 2))
    pairs = list(zip(inside.steps(1, 7), outside.steps(1, 7), strict=True))
    assert pairs and keys([a for a, _ in pairs]) == keys([b for _, b in pairs])
    assert all(a.load == b.load is not None for a, b in pairs)
    assert outside._steps.cost_N is not None and outside._steps.cost_N.is_shared()
    assert inside.evenness.read() == outside.evenness.read() != {}
    with pytest.raises(ValueError, match="before the first pass"):
        outside.deal_by_tokens(np.ones(len(TRAIN), np.int32))
    outside.close()


@pytest.mark.parametrize("costs", [[1] * 53, [1] * 53 + [0]])
def test_costs_that_fit_no_part(manifest: Manifest, costs: list[int]) -> None:
    with pytest.raises(ValueError, match="not one positive number for each of 54"):
        loader(manifest, costs=False).deal_by_tokens(np.array(costs, np.int32))


def test_a_damaged_index_costs_evenness_not_records(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its records count as the mean, are dealt as any others, and are skipped and counted where they are met."""
    manifest = make_set(tmp_path, RECORDS)
    path = tmp_path / manifest.shards[1].index.name
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    lost = sum(chunk.parts[manifest.column("default", "train")] for chunk in manifest.shards[1].chunks)
    part = loader(manifest, costs=False).part
    cost_N = read_costs(part, WEIGHTS)
    assert "costs of a shard's records are taken for the mean" in caplog.text and "SHA-256" in caplog.text
    assert int((cost_N == UNKNOWN).sum()) == lost > 0
    known = cost_N[cost_N != UNKNOWN]
    full_N = complete_costs(cost_N)
    assert set(full_N[cost_N == UNKNOWN].tolist()) == {int(known.sum()) // len(known)}
    assert (full_N[cost_N != UNKNOWN] == known).all()
    ranks = [list(loader(manifest, rank=r, world=3, on_error="skip", max_skipped=lost).steps(0)) for r in range(3)]
    skipped = sum((Counter(step.skipped) for steps in ranks for step in steps), Counter[str]())
    got = sorted(key for steps in ranks for step in keys(steps) for key in step)
    assert skipped == {"checksum": lost} and len(got) == len(set(got)) == len(TRAIN) - lost
    with pytest.raises(ShardError, match="SHA-256"):
        for r in range(3):
            list(loader(manifest, rank=r, world=3).steps(0))


def test_nothing_is_known() -> None:
    assert complete_costs(np.zeros(3, np.int32)).tolist() == [1, 1, 1]
    assert complete_costs(np.array([4, 0, 7], np.int32)).tolist() == [4, 5, 7]
