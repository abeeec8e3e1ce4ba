"""Sums of segments and look-ups against loops and indexing, in the precision they promise."""

import pytest
import torch
from torch import Tensor

from parallel.config import MoEConfig
from parallel.moe import segments as segments_file
from parallel.moe.layer import MoELayer
from parallel.moe.rows import sums
from parallel.moe.segments import Segments, look_up, reference_segment_max, reference_segment_sum
from tests.gpu_branch import Watch


@pytest.fixture(params=[False, True], ids=["one stage", "two stages"])
def stages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Also as a GPU without Triton adds up, in stretches short enough to matter."""
    if request.param:
        monkeypatch.setattr(sums, "add_segments", sums.segments_plain)
        monkeypatch.setattr(sums, "STRETCH", 4)
    return bool(request.param)


SEGMENT_N = torch.tensor([4, 0, 4, 2, 2, 0, 4, 4, 4, 4, 4, 6, 4, 4, 4, 0, 4, 4])  # 1, 3, 5 and 7 have no row


def test_sums_are_those_of_the_loop_also_of_no_rows(stages):
    x_ND = torch.randn(18, 3, 2, dtype=torch.float64, requires_grad=True)
    assert Segments.of(SEGMENT_N, 8).sum(torch.ones(18, 1))[:, 0].tolist() == [3, 0, 2, 0, 12, 0, 1, 0]
    assert Segments.of(SEGMENT_N, 8).counts.tolist() == [3, 0, 2, 0, 12, 0, 1, 0]
    torch.testing.assert_close(Segments.of(SEGMENT_N, 8).sum(x_ND), reference_segment_sum(x_ND.detach(), SEGMENT_N, 8))
    assert torch.autograd.gradcheck(lambda x: Segments.of(SEGMENT_N, 8).sum(x), x_ND)
    ordered = SEGMENT_N.sort().values
    as_they_lie = Segments.of(ordered, 8, ascending=True).sum(x_ND)
    torch.testing.assert_close(as_they_lie, reference_segment_sum(x_ND.detach(), ordered, 8))
    assert Segments.of(SEGMENT_N[:0], 3).sum(torch.zeros(0, 5)).tolist() == [[0.0] * 5] * 3
    assert Segments.of(SEGMENT_N[:0], 0).sum(torch.zeros(0, 5)).shape == (0, 5)


def test_means_are_sums_over_counts(stages):
    x_ND = torch.randn(18, 2, dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([3, 1, 2, 1, 12, 1, 1, 1])[:, None]
    segments = Segments.of(SEGMENT_N, 8)
    torch.testing.assert_close(segments.mean(x_ND), reference_segment_sum(x_ND.detach(), SEGMENT_N, 8) / counts)
    assert torch.autograd.gradcheck(segments.mean, x_ND)
    assert segments.mean(x_ND.bfloat16()).dtype == torch.float32


def test_largest_and_smallest_rows_are_those_of_the_loop(stages, monkeypatch):
    if stages:
        monkeypatch.setattr(segments_file, "STRETCH", 4)
    x_ND = torch.randn(18, 3, 2) - 5  # all below 0, so that nothing fills in unseen
    segments = Segments.of(SEGMENT_N, 8)
    assert torch.equal(segments.max(x_ND, 7.0), reference_segment_max(x_ND, SEGMENT_N, 8, 7.0))
    assert torch.equal(segments.min(x_ND, 7.0), -reference_segment_max(-x_ND, SEGMENT_N, 8, -7.0))
    values = torch.tensor([3.0, -1, 9, 4, 4, 2, -8, 0, 1, 5, 6, -3, 7, 2, 1, -6, 8, 0])
    assert segments.max(values).tolist() == [2, 0, 4, 0, 9, 0, -3, 0]
    assert segments.min(values).tolist() == [-6, 0, 4, 0, -8, 0, -3, 0]
    ordered = SEGMENT_N.sort().values
    assert torch.equal(Segments.of(ordered, 8, ascending=True).max(x_ND), reference_segment_max(x_ND, ordered, 8))
    assert segments.max(x_ND.bfloat16()).dtype == torch.bfloat16
    assert Segments.of(SEGMENT_N[:0], 3).max(torch.zeros(0, 2), 1.5).tolist() == [[1.5, 1.5]] * 3
    meta = Segments.of(SEGMENT_N.to("meta"), 8)
    with Watch() as watch:  # on the meta device whatever asks for a number fails
        assert meta.min(torch.zeros(18, 2, device="meta")).shape == (8, 2)
    assert watch.scatters == [] and watch.found_waits == []


def test_look_ups_are_those_of_indexing_and_so_are_their_gradients(stages):
    table_SD = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(look_up(table_SD, SEGMENT_N), table_SD[SEGMENT_N])
    assert torch.equal(Segments.of(SEGMENT_N, 8).spread(table_SD), table_SD[SEGMENT_N])
    assert torch.autograd.gradcheck(lambda t: look_up(t, SEGMENT_N), table_SD)
    assert torch.autograd.gradcheck(lambda t: Segments.of(SEGMENT_N, 8).spread(t), table_SD)
    assert look_up(table_SD, SEGMENT_N[:0]).shape == (0, 3)


def test_softmax_is_that_of_each_segment_also_far_from_zero(stages):
    score_NH = (torch.randn(18, 2, dtype=torch.float64) * 30 - 900).requires_grad_()
    expected_NH = torch.zeros(18, 2, dtype=torch.float64)
    for segment in SEGMENT_N.unique():
        expected_NH[segment == SEGMENT_N] = score_NH.detach()[segment == SEGMENT_N].softmax(0)
    torch.testing.assert_close(Segments.of(SEGMENT_N, 8).softmax(score_NH), expected_NH)
    assert torch.autograd.gradcheck(lambda s: Segments.of(SEGMENT_N, 8).softmax(s), score_NH)
    assert Segments.of(SEGMENT_N, 8).softmax(score_NH.bfloat16()).dtype == torch.float32


def test_a_sum_of_bf16_rows_is_rounded_nowhere_and_its_transpose_once(stages):
    """1,536 ones and a half: in bf16 a running sum stops at 256."""
    x_ND = torch.ones(1536, 1, dtype=torch.bfloat16)
    x_ND[0] = 0.5
    assert Segments.of(torch.zeros(1536, dtype=torch.int64), 1).sum(x_ND).item() == 1535.5
    assert reference_segment_sum(x_ND, torch.zeros(1536, dtype=torch.int64), 1).item() == 256.0
    table_SD = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    look_up(table_SD, torch.zeros(1536, dtype=torch.int64)).backward(x_ND)
    assert table_SD.grad is not None and table_SD.grad.dtype == torch.bfloat16 and table_SD.grad.item() == 1536.0


def test_on_a_cpu_bits_are_those_of_adding_in_the_order_of_the_rows():
    x_ND, segment_N = torch.randn(400, 7), torch.randint(0, 5, (400,))
    assert torch.equal(Segments.of(segment_N, 5).sum(x_ND), torch.zeros(5, 7).index_add(0, segment_N, x_ND))


def test_nothing_is_added_by_index_and_nothing_waits(stages):
    """On the meta device there are no values, so whatever asks for one fails. The maximum of a softmax adds nothing."""
    x_ND = torch.randn(18, 3, dtype=torch.bfloat16, device="meta", requires_grad=True)
    segments = Segments.of(SEGMENT_N.to("meta"), 8)
    with Watch() as watch:
        total_SD = segments.sum(x_ND)
        (segments.spread(total_SD) * look_up(total_SD, segments.segment_N)).sum().backward()
    assert total_SD.shape == (8, 3) and x_ND.grad is not None
    assert watch.kernels[""] > 10 and watch.scatters == [] and watch.found_waits == []


@pytest.mark.parametrize("router", ["joint", "per_modality"])
def test_shared_decisions_are_means_in_fp32_and_the_same_when_made_again(router, stages):
    layer = MoELayer(8, MoEConfig(experts=4, top_k=2, granularity="sample", router=router), modalities=2).bfloat16()
    x_ND = torch.randn(600, 8).bfloat16().requires_grad_()
    modality_N, sample_N = torch.randint(0, 2, (600,)), torch.randint(0, 3, (600,))

    def means() -> Tensor:
        return layer._decisions(x_ND, modality_N, sample_N, 4)[0]

    with Watch() as watch:
        first_UD = means()
        first_UD.sum().backward()
    assert watch.scatters == [] and watch.found_waits == []
    assert torch.equal(first_UD, means()) and first_UD.dtype == torch.float32
    unit_N = sample_N if router == "joint" else sample_N * 2 + modality_N
    for unit, mean_D in enumerate(first_UD):
        own = x_ND.detach().double()[unit_N == unit]
        expected_D = own.mean(0) if len(own) else torch.zeros(8, dtype=torch.float64)
        torch.testing.assert_close(mean_D.double(), expected_D, rtol=1e-5, atol=1e-6)
