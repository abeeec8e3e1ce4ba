"""Series on even times: against loops, and what fixed kernels then say of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from parallel.moe.segments import Segments
from tests.live_bytes import LiveBytes
from trainer.models.layers.grouped_linear import Blocks
from trainer.models.layers.ragged import offsets_to_ids
from trainer.models.numbers.even_grid import CELL_BYTES, even_grid_reference, on_even_grid
from trainer.models.numbers.kernels import KernelShares
from trainer.models.numbers.series_shapes import DETAIL, EvenLayout, SeriesShapes, starts_of

Events = list[tuple[float, float]]  # of one channel: (time, value) by time
WIDEST = 3


def events(count: int, seed: int) -> Events:
    draw = torch.Generator().manual_seed(seed)
    time = (torch.rand(count, generator=draw).sort().values * 0.9).tolist()
    return list(zip(time, torch.randn(count, generator=draw).tolist(), strict=True))


def even(value_LC: Tensor) -> list[Events]:
    """Each channel at every moment of the window."""
    length = len(value_LC)
    return [[(i / length, value) for i, value in enumerate(column)] for column in value_LC.T.tolist()]


def packed(series: list[list[Events]], widest: int = WIDEST) -> tuple[Tensor, Tensor, Segments]:
    """Values, times and the segment of each event of series that lie back to back."""
    rows = [
        (value, time, number * widest + channel)
        for number, channels in enumerate(series)
        for channel, own in enumerate(channels)
        for time, value in own
    ]
    value_O, time_O, segment_O = (torch.tensor([row[i] for row in rows]) for i in range(3))
    return value_O, time_O, Segments.of(segment_O.long(), len(series) * widest, ascending=True)


def grids(series: list[list[Events]], widest: int = WIDEST) -> list[Tensor]:
    """The grid of each."""
    value_O, time_O, by_feature = packed(series, widest)
    start_P1 = starts_of(by_feature.counts, widest)
    pair_R = offsets_to_ids(start_P1, int(start_P1[-1]))
    value_RF = on_even_grid(value_O, time_O, by_feature, widest, start_P1, pair_R)
    return list(value_RF.split(start_P1.diff().tolist()))


def shapes(series: list[list[Events]], widths: list[int], block_P: list[int]) -> Tensor:
    """(P, X): shares before anything is learned of them."""
    value_O, time_O, by_feature = packed(series, max(widths))
    own = SeriesShapes(widths, dim=8)
    start_P1, blocks = starts_of(by_feature.counts, own.widest), torch.tensor(block_P)
    layout = layout_of(by_feature)
    pair_R = offsets_to_ids(start_P1, layout.rows)
    value_RF = own.values(value_O, time_O, by_feature, start_P1, pair_R, blocks)
    by_pair = Segments.of(pair_R, len(series), ascending=True)
    return own.whole.shares(value_RF, by_pair, start_P1, layout.looked_at)  # type: ignore[no-any-return]


def layout_of(by_feature: Segments, widest: int = WIDEST) -> EvenLayout:
    pair_O = by_feature.segment_N // widest
    pairs = len(by_feature) // widest
    offsets_P1 = torch.searchsorted(pair_O, torch.arange(pairs + 1))
    return EvenLayout.of(offsets_P1, by_feature.segment_N % widest, widest)


def test_a_grid_is_what_loops_over_its_series_give() -> None:
    at_once = [(0.5, 1.0), (0.5, 2.0), (0.5, 3.0)]
    series = [
        [events(7, 1), events(20, 2), events(1, 3)],
        [[], [], []],
        [[(0.25, 2.0)], [], []],
        [at_once, [], []],  # of events at one time the last counts
        [events(4, 4), [], at_once],
        [[], events(2, 5), []],
    ]
    found = grids(series)
    assert [len(grid) for grid in found] == [20, 0, 1, 3, 4, 2]
    for own, grid in zip(series, found, strict=True):
        torch.testing.assert_close(grid, torch.tensor(even_grid_reference(own)).view(-1, WIDEST), rtol=0, atol=1e-5)
    assert found[3][:, 0].tolist() == [3.0, 3.0, 3.0]


@pytest.mark.parametrize("length", [2, 3, 100, 997, 5_000])
def test_an_even_series_lies_on_its_grid_unchanged(length: int) -> None:
    """Though float32 times of even moments are not quite even."""
    value_LC = torch.randn(length, WIDEST, generator=torch.Generator().manual_seed(length))
    assert torch.equal(grids([even(value_LC)])[0], value_LC)


def test_of_a_channel_that_missed_some_times_the_rest_stays() -> None:
    value_LC = torch.randn(60, WIDEST, generator=torch.Generator().manual_seed(0))
    channels = even(value_LC)
    channels[1] = channels[1][:20] + channels[1][21:]
    (grid,) = grids([channels])
    assert torch.equal(grid[:, [0, 2]], value_LC[:, [0, 2]])
    torch.testing.assert_close(grid[20, 1], value_LC[[19, 21], 1].mean(), rtol=0, atol=1e-4)
    assert torch.equal(grid[21:, 1], value_LC[21:, 1])


def test_a_cell_costs_what_a_plan_counts() -> None:
    """Of one dense channel among many that are not, as of sensors beside laboratory values."""
    widest, length = 20, 4_000
    value_O, time_O, by_feature = packed([[events(length, 0), *[[]] * (widest - 1)]], widest)
    start_P1 = starts_of(by_feature.counts, widest)
    pair_R = offsets_to_ids(start_P1, length)
    with LiveBytes() as live:
        on_even_grid(value_O, time_O, by_feature, widest, start_P1, pair_R)
    assert (live.peak - live.held) / (length * widest) == pytest.approx(CELL_BYTES, rel=0.15)


def test_the_host_counts_what_the_device_will() -> None:
    series = [[events(7, 1), events(20, 2), []], [[], [], []], [[], events(3, 3), events(2, 4)]]
    assert layout_of(packed(series)[2]) == EvenLayout(23, 20)
    assert layout_of(packed([[events(DETAIL.moments + 9, 0), [], []]])[2]).looked_at == DETAIL.moments


def test_shapes_of_an_even_series_are_those_of_the_signal() -> None:
    value_LC = torch.randn(90, WIDEST, generator=torch.Generator().manual_seed(0)).cumsum(0)
    found_PX = shapes([even(value_LC), even(value_LC[:40])], [WIDEST], [0, 0])
    shares = KernelShares(WIDEST, DETAIL)
    for found_X, own in zip(found_PX, (value_LC, value_LC[:40]), strict=True):
        by_signal = Segments.of(torch.zeros(len(own), dtype=torch.int64), 1, ascending=True)
        (expected_X,) = shares(own, by_signal, torch.tensor([0, len(own)]), len(own))
        torch.testing.assert_close(found_X, expected_X, rtol=0, atol=1e-4)


def test_a_narrow_series_is_answered_by_every_kernel() -> None:
    """Beside wider ones, whose kernels read other channels than its own."""
    value_LC = torch.randn(50, 1, generator=torch.Generator().manual_seed(1)).cumsum(0)
    wide, narrow = [events(30, number) for number in range(3)], [*even(value_LC), [], []]
    both_PX = shapes([wide, narrow], [3, 1], [0, 1])
    sizes_PX = both_PX.view(2, 8, -1, 84)[:, :, -1]  # how large answers are, by dilation and kernel
    assert (sizes_PX[1] > -2.0).all()  # the least is log(1e-4) / 3
    neighbourless = shapes([narrow], [3, 1], [1])[0]
    torch.testing.assert_close(both_PX[1], neighbourless, rtol=0, atol=1e-6)


def test_no_events_at_all() -> None:
    by_feature = Segments.of(torch.zeros(0, dtype=torch.int64), 2 * WIDEST, ascending=True)
    none, block_P = torch.zeros(0), torch.zeros(2, dtype=torch.int64)
    own = SeriesShapes([WIDEST], dim=8)
    layout = layout_of(by_feature)
    found_PD = own(none, none, by_feature, block_P, Blocks.of(torch.tensor([2])), layout)
    assert layout == EvenLayout(0, 0) and found_PD.shape == (2, 8) and bool(found_PD.isfinite().all())
