"""Objects at their times: each for itself or together on the grid, against obvious loops and written-down values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.config.sections import ObjectsConfig
from trainer.models.encoders.grid_over_time import GridOverTime, grid_reference
from trainer.models.encoders.layout import PresentPairs
from trainer.models.encoders.over_time import ObjectTimes
from trainer.models.encoders.tokens_over_time import TokensOverTime, tokens_reference
from trainer.models.layers.grouped_linear import Blocks

DIM, BINS, BLOCKS = 8, 4, 2


def pairs_of(*blocks: int) -> PresentPairs:
    """One pair of each of these blocks, the samples numbered within a block."""
    block_Q = torch.tensor(blocks, dtype=torch.int64)
    sample_Q = torch.tensor([blocks[:q].count(block) for q, block in enumerate(blocks)], dtype=torch.int64)
    counts = Blocks.of(torch.bincount(block_Q, minlength=BLOCKS))
    return PresentPairs(10 + block_Q, sample_Q, block_Q, counts, len(blocks))


def times_of(present: PresentPairs, *times: list[float]) -> ObjectTimes:
    """Times of the objects of each pair."""
    pair_O = torch.repeat_interleave(torch.tensor([len(own) for own in times], dtype=torch.int64))
    flat_O = torch.tensor([time for own in times for time in own], dtype=torch.float32)
    counts = torch.bincount(present.block_Q[pair_O], minlength=BLOCKS)
    return ObjectTimes(pair_O, flat_O, Blocks.of(counts))


PAIRS = pairs_of(0, 0, 0, 1, 1, 1)
TIMES = times_of(PAIRS, [0.1, 0.1, 0.6], [], [1.0], [0.0, 0.24, 0.25, 0.5, 0.9], [0.7], [])
# Nine, ten and eleven objects share rectangles that are wider than some of them.
LONG = times_of(PAIRS, *([place / number for place in range(number)] for number in (11, 9, 2, 10, 11, 9)))


def module_of(kind: str, tokens: int, **changes: Any) -> Any:
    torch.manual_seed(0)
    if kind == "tokens":
        return TokensOverTime(BLOCKS, tokens, 6, BINS, DIM)
    return GridOverTime(BLOCKS, tokens, kind, ObjectsConfig(heads=2, time_dim=6, **changes), BINS, DIM)


def _gradients(total: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(total, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("times", [TIMES, times_of(PAIRS, *[[0.3]] * 6), times_of(PAIRS, *[[]] * 6)])
def test_tokens_are_those_of_the_loop(tokens: int, times: ObjectTimes) -> None:
    module = module_of("tokens", tokens)
    token_OUD = torch.randn(len(times.time_O), tokens, DIM, requires_grad=True)
    layout = module.lay_out(times, PAIRS)
    got, expected = module(token_OUD, times.time_O, layout), tokens_reference(module, token_OUD, times, PAIRS)
    torch.testing.assert_close(got, expected)
    weight_ND = torch.randn_like(expected)
    inputs = [token_OUD, *module.parameters()]
    torch.testing.assert_close(
        _gradients((got * weight_ND).sum(), inputs), _gradients((expected * weight_ND).sum(), inputs)
    )


@pytest.mark.parametrize("kind", ["mtand", "imputation", "utde"])
@pytest.mark.parametrize("changes", [{}, {"gate": "sample", "kernel": 3}, {"gate": "bin", "kernel": 2}])
@pytest.mark.parametrize("times", [TIMES, LONG, times_of(PAIRS, *[[0.3, 0.3]] * 6), times_of(PAIRS, *[[]] * 6)])
def test_the_grid_is_that_of_the_loop(kind: str, changes: dict[str, Any], times: ObjectTimes) -> None:
    module = module_of(kind, 1, **changes)
    token_OUD = torch.randn(len(times.time_O), 1, DIM, requires_grad=True)
    got = module(token_OUD, times.time_O, module.lay_out(times, PAIRS)).view(6, BINS, DIM)
    expected = grid_reference(module, token_OUD[:, 0], times, PAIRS)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(expected)
    inputs = [token_OUD, *module.parameters()]
    torch.testing.assert_close(
        _gradients((got * weight).sum(), inputs),
        _gradients((expected * weight).sum(), inputs),
        rtol=1e-4,
        atol=1e-6,
    )


def test_an_object_of_several_tokens_is_read_by_queries() -> None:
    """softmax(query · token) over an object's tokens, then one map per modality."""
    module = module_of("imputation", 3, queries=2)
    token_OUD = torch.randn(len(TIMES.time_O), 3, DIM)
    got = module._embed(token_OUD, TIMES.objects)
    block_O = PAIRS.block_Q[TIMES.pair_O]
    for number, block in enumerate(block_O.tolist()):
        weight_LU = (module.query_MLD[block] @ token_OUD[number].T).softmax(1)
        read_X = (weight_LU @ token_OUD[number]).flatten()
        torch.testing.assert_close(got[number], read_X @ module.read.weight[block] + module.read.bias[block])


def test_where_tokens_stand() -> None:
    """0 to the horizon in four bins: 0.24 is of the first, 0.25 of the second, the horizon of the last; empty: last."""
    module = module_of("tokens", 2)
    places = module.lay_out(TIMES, PAIRS)
    assert places.count_Q.tolist() == [6, 1, 2, 10, 2, 1]
    assert places.bin_N.tolist() == [0, 0, 0, 0, 2, 2, 3, 3, 3, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3]
    encoded = module.encoded(places, PAIRS)
    assert encoded.blocks.counts == (9, 13) and encoded.counts.tolist() == [6, 1, 2, 10, 2, 1]


def test_the_last_object_and_its_age() -> None:
    """Of two at the same time the later one in the record; none before the first; ages from the bins' ends."""
    module = module_of("imputation", 1)
    places = module.lay_out(TIMES, PAIRS)
    none = len(TIMES.time_O)
    assert places.last_QT.tolist()[:4] == [[1, 1, 2, 2], [none] * 4, [none, none, none, 3], [5, 6, 7, 8]]
    expected = [[0.15, 0.4, 0.15, 0.4], [1.0] * 4, [1.0, 1.0, 1.0, 0.0], [0.01, 0.25, 0.25, 0.1]]
    torch.testing.assert_close(places.age_QT[:4], torch.tensor(expected))


def test_when_shows_within_a_bin_and_so_does_the_order() -> None:
    module = module_of("tokens", 1)
    one, two = torch.randn(2, DIM)
    pairs = pairs_of(0)

    def tokens(*objects: tuple[float, Tensor]) -> Tensor:
        times = times_of(pairs, [time for time, _ in objects])
        token_OUD = torch.stack([value for _, value in objects])[:, None]
        return module(token_OUD, times.time_O, module.lay_out(times, pairs))  # type: ignore[no-any-return]

    first, second = tokens((0.26, one), (0.30, two)), tokens((0.26, two), (0.30, one))
    assert (first.sum(0) - second.sum(0)).abs().max() < 1e-5, "the same two objects and times"
    assert (first[0] - second[1]).abs().max() > 0.01, "but not at the same of them"
    assert (tokens((0.26, one)) - tokens((0.30, one))).abs().max() > 0.01


def test_many_objects_of_one_pair_are_in_a_rectangle_of_their_own() -> None:
    """100 objects beside ones: 100 + 5 cells of attention, not 6 x 100."""
    module = module_of("mtand", 1)
    times = times_of(PAIRS, [0.5], [0.5] * 100, [0.5], [0.5], [0.5], [0.5])
    buckets = module.lay_out(times, PAIRS).by_pair.buckets
    assert [(bucket.sequences, bucket.length) for bucket in buckets] == [(5, 1), (1, 112)]
