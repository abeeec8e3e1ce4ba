"""Mixtures: shares and accounting of the order, exact resume, who holds what, and that members stay apart."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards import Batch, DataConfig, Position, StepLoader, open_data, open_manifest, pack
from data_shards.loading.mixed_order import mixed_counts, taken_before
from data_shards.loading.mixture import Mixture
from tests.data_shards.build import SCHEMA, ListSource, make_record, make_set
from tests.trainer.tiny import packed

OWN = sorted(f"big/r{i:05d}" for i in range(90) if make_record(i).splits["default"] == "train")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A data set of every kind with 54 training records, and a smaller one of other modalities."""
    make_set(tmp_path_factory.mktemp("big"), 90)
    return make_set(tmp_path_factory.mktemp("big"), 90).url, packed(tmp_path_factory.mktemp("small"))


def config(folders: tuple[str, str], weights: tuple[float, float] = (1, 1), **changes: object) -> DataConfig:
    entries = {
        "big": {"url": folders[0], "weight": weights[0], "tasks": ["ward", "stay"]},
        "small": {"url": folders[1], "weight": weights[1]},
    }
    return DataConfig.model_validate({"mixture": entries, "window_chunks": 4, **changes})


def loader(data: DataConfig, batch_size: int = 16, part: str = "train", **options: object) -> StepLoader:
    return StepLoader(open_data(data), data, part, batch_size, **options)  # type: ignore[arg-type]


def keys(steps: object) -> list[list[str]]:
    return [[key for batch in step.micro_batches for key in batch.keys] for step in steps]  # type: ignore[attr-defined]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=2, max_size=6), st.integers(0, 10_000), st.integers(1, 200))
def test_places_are_shared_out_evenly_and_add_up(counts: list[int], start: int, length: int) -> None:
    total = sum(counts)
    start = start % total
    place_N = np.arange(start, min(total, start + length) + 1)
    before_KN = taken_before(place_N, counts)
    assert (before_KN.sum(axis=0) == place_N).all()
    steps = np.diff(before_KN, axis=1)
    assert ((steps == 0) | (steps == 1)).all()
    assert (taken_before(np.array([total]), counts)[:, 0] == counts).all()
    fair = place_N[None] * np.array(counts)[:, None] / total
    assert np.abs(before_KN - fair).max() < len(counts)


@pytest.mark.parametrize(
    ("sizes", "weights", "counts"),
    [([60, 20], [1, 1], [60, 20]), ([60, 20], [1, 3], [40, 40]), ([10, 10, 10], [1, 1, 2], [8, 7, 15])],
)
def test_an_epoch_is_as_long_as_all_records_and_weights_move_its_shares(
    sizes: list[int], weights: list[float], counts: list[int]
) -> None:
    assert mixed_counts(sizes, weights) == counts
    with pytest.raises(ValueError, match="no place in an epoch"):
        mixed_counts([1000, 3], [1000, 0.001])


def test_with_equal_weights_an_epoch_delivers_every_record_once(folders: tuple[str, str]) -> None:
    train = loader(config(folders))
    small = open_manifest(folders[1])
    got = [key for step in keys(train.steps(0)) for key in step]
    assert train.samples == 54 + small.splits["default"]["train"] == len(got) == len(set(got))
    assert sorted(key for key in got if key.startswith("big/")) == OWN
    again = [key for step in keys(train.steps(1)) for key in step]
    assert set(again) == set(got) and again != got
    shares = [sum(key.startswith("big/") for key in step) / len(step) for step in keys(train.steps(0))[:-1]]
    assert max(shares) - min(shares) <= 2 / 16


def test_with_other_weights_every_record_is_seen_equally_often(folders: tuple[str, str]) -> None:
    train = loader(config(folders, weights=(1, 4)))
    counts: Counter[str] = Counter()
    for epoch in range(6):
        counts.update(key for step in keys(train.steps(epoch)) for key in step)
    assert counts.total() == 6 * train.samples
    for name in ("big/", "small/"):
        own = [count for key, count in counts.items() if key.startswith(name)]
        assert max(own) - min(own) <= 1
    small = [count for key, count in counts.items() if key.startswith("small/")]
    assert np.mean(small) > 1.5 * 6 and len(small) == open_manifest(folders[1]).splits["default"]["train"]


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_global_batches_do_not_depend_on_the_world_and_every_rank_gets_both(
    folders: tuple[str, str], world: int
) -> None:
    data = config(folders, weights=(1, 2))
    alone = keys(loader(data).steps(3))
    ranks = [list(loader(data, rank=r, world=world, accumulation=2).steps(3)) for r in range(world)]
    for t, expected in enumerate(alone):
        micro = [batch for steps in ranks for batch in steps[t].micro_batches]
        assert sorted(key for batch in micro for key in batch.keys) == sorted(expected)
    if world == 2:
        first = [{key.split("/")[0] for batch in steps[0].micro_batches for key in batch.keys} for steps in ranks]
        assert first == [{"big", "small"}] * 2


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("before", "after"), [((16, 1), (16, 3)), ((16, 2), (10, 1))])
def test_a_run_continues_exactly_where_it_was_left(
    folders: tuple[str, str], workers: int, before: tuple[int, int], after: tuple[int, int]
) -> None:
    data = config(folders, weights=(1, 2), workers=workers)
    whole = [key for step in keys(loader(config(folders, weights=(1, 2))).steps(2)) for key in step]
    seen: list[str] = []
    position = Position(2, 0)
    for size, world in (before, after):
        ranks = [loader(data, batch_size=size, rank=r, world=world) for r in range(world)]
        taken = [list(rank.steps(position.epoch, position.offset)) for rank in ranks]
        stop = 2 if (size, world) == before else None
        seen += [key for steps in taken for step in keys(steps[:stop]) for key in step]
        position = taken[0][: stop or len(taken[0])][-1].position
        for rank in ranks:
            rank.close()
    assert position.offset == ranks[0].samples and sorted(seen) == sorted(whole)


def test_records_keep_their_values_labels_and_modalities(folders: tuple[str, str]) -> None:
    data = config(folders)
    mixture = open_data(data)
    assert isinstance(mixture, Mixture)
    own = loader(DataConfig(url=folders[0]), batch_size=500, shuffle=False)
    mixed = loader(data, batch_size=500, shuffle=False)
    a: Batch = next(own.steps(0)).micro_batches[0]
    b: Batch = next(mixed.steps(0)).micro_batches[0]
    n, m = len(a), len(SCHEMA.modalities)
    assert [f"big/{key}" for key in a.keys] == b.keys[:n] and len(b) == mixed.samples
    assert (b.present_BM[:n, :m] == a.present_BM).all() and not b.present_BM[:n, m:].any()
    assert b.known_BM is not None and b.known_BM[:n, :m].all() and not b.known_BM[:n, m:].any()
    assert not b.known_BM[n:, :m].any() and b.known_BM[n:, m:].all() and not (b.absent() & ~b.known_BM).any()
    assert a.known_BM is None and (a.absent() == ~a.present_BM).all()
    for task in ("ward", "stay"):
        assert np.array_equal(b.targets[f"big-{task}"][:n], a.targets[task], equal_nan=True)
        assert b.targets[f"big-{task}"][n:].isnan().all()
    assert "big-death" not in b.targets and all(name.startswith(("big-", "small-")) for name in b.targets)
    assert (b.index_B.diff() > 0).all() and int(b.index_B[n:].min()) >= 90
    series_a, series_b = a.groups["series"], b.groups["series"]
    events = len(series_a.values_O)  # type: ignore[attr-defined]
    assert (series_b.values_O[:events] == series_a.values_O).all()  # type: ignore[attr-defined]
    again = Batch.from_buffer(b.to_buffer())
    assert again.known_BM is not None and (again.known_BM == b.known_BM).all()


def test_statistics_digest_and_counts_are_those_of_the_members(folders: tuple[str, str]) -> None:
    one, two = open_data(config(folders)), open_data(config(folders, weights=(1, 2)))
    assert one.digest != two.digest and one.digest == open_data(config(folders)).digest
    own = open_manifest(folders[0])
    joined = one.statistics["default"]
    assert joined.modalities["big-labs"] == own.statistics["default"].modalities["labs"]
    assert joined.tasks["big-ward"] == own.statistics["default"].tasks["ward"] and "big-death" not in joined.tasks
    parts = Counter(own.splits["default"]) + Counter(open_manifest(folders[1]).splits["default"])
    assert one.splits == {"default": dict(parts)} and one.records == 90 + open_manifest(folders[1]).records


def test_what_does_not_fit_is_said(folders: tuple[str, str], tmp_path: Path) -> None:
    for entry, sentence in (
        ({"mixture": {"big": {"url": folders[0]}}}, "two data sets or more"),
        ({"mixture": {"a": {"url": folders[0]}, "b": {"url": folders[1], "tasks": ["x"]}}}, "has no task 'x'"),
        ({"mixture": {"a": {"url": folders[0]}, "b": {"url": folders[1], "split": "x"}}}, "has no split 'x'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            open_data(DataConfig.model_validate(entry))
    with pytest.raises(ValueError, match="neither is given"):
        DataConfig()
    with pytest.raises(ValueError, match="both are given"):
        config(folders, url="x")
    with pytest.raises(ValueError, match="must be 1 to 24 letters"):
        DataConfig.model_validate({"mixture": {"a-b": {"url": "x"}, "c": {"url": "y"}}})
    with pytest.raises(ValueError, match="no data set of the mixture has a part 'nothing'"):
        loader(config(folders), part="nothing")


def test_a_part_that_one_member_lacks_is_the_others(folders: tuple[str, str], tmp_path: Path) -> None:
    rows = [make_record(i) for i in range(20)]
    for row in rows:
        row.splits = {"default": "train"}
    pack(ListSource(SCHEMA, rows), str(tmp_path / "set"))
    data = config((str(tmp_path / "set"), folders[1]))
    test = loader(data, part="test", shuffle=False)
    assert {key.split("/")[0] for step in keys(test.steps(0)) for key in step} == {"small"}
    batch = next(test.steps(0)).micro_batches[0]
    assert batch.known_BM is not None and not batch.known_BM[:, : len(SCHEMA.modalities)].any()
