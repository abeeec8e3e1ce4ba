"""Gradients in the buffer of a collective: every element once, in the row of the rank that owns it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from parallel.engine.flat_layout import FlatGroup, FlatLayout

SIZES = [[(3, 5), (4,), (7, 2)], [(6,), (1,)], [(11,)]]


def groups_of(sizes: list[list[tuple[int, ...]]], ranks: int) -> list[FlatGroup]:
    """Flat groups as ZeRO makes them: parameters end to end, padded to equal even slices."""
    found = []
    for number, shapes in enumerate(sizes):
        starts, end = [], 0
        for shape in shapes:
            parameter = nn.Parameter(torch.randn(shape).to(torch.bfloat16))
            starts.append((parameter, end))
            end += parameter.numel()
        found.append(FlatGroup(number, -(-end // (2 * ranks)) * 2, starts))
    return found


def expected_flat(group: FlatGroup, ranks: int, gradients: dict[int, Tensor]) -> Tensor:
    flat = torch.zeros(group.owned * ranks)
    for parameter, start in group.starts:
        if id(parameter) in gradients:
            flat[start : start + parameter.numel()] = gradients[id(parameter)].float().flatten()
    return flat


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_rank_gets_its_slices_of_all_groups(count: int, ranks: int) -> None:
    torch.manual_seed(ranks)
    groups = groups_of(SIZES[:count], ranks)
    layout = FlatLayout(groups, ranks)
    parameters = layout.parameters
    total = {}
    buffer = None
    for turn in range(2):  # the second micro-batch is added to the first
        gradients = {id(p): torch.randn(p.shape).to(torch.bfloat16) for p in parameters[turn:]}  # one has none
        for parameter in parameters:
            parameter.grad = gradients.get(id(parameter))
        total = {
            id(p): total.get(id(p), torch.zeros(p.shape)) + gradients.get(id(p), torch.zeros(p.shape)).float()
            for p in parameters
        }
        buffer = layout.take(buffer, torch.device("cpu"))
        assert all(parameter.grad is None for parameter in parameters), "gradients are freed"
    assert buffer is not None and buffer.dtype == torch.float32
    rows = buffer.view(ranks, layout.width)
    for group in groups:
        flat = expected_flat(group, ranks, total)
        for rank in range(ranks):
            part = layout.split(rows[rank])[group.number]
            assert torch.equal(part, flat[rank * group.owned : (rank + 1) * group.owned]), f"group {group.number}"


def test_memory_that_was_used_before_does_not_shine_through() -> None:
    """Padding and what has no gradient are zeros, not what the allocator hands out."""
    groups = groups_of([[(3,)], [(5,)]], 4)
    layout = FlatLayout(groups, 4)
    original = torch.empty
    try:
        torch.empty = lambda *args, **kwargs: torch.full(*args, torch.nan, **kwargs)  # type: ignore[assignment]
        buffer = layout.take(None, torch.device("cpu"))
    finally:
        torch.empty = original
    assert not buffer.any()
