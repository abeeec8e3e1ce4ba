"""The watch sees what it is there for."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from parallel.moe import grouped_matmul
from tests.gpu_branch import Watch, gpu_branch


@pytest.mark.parametrize(
    ("waits", "code"),
    [
        (2, lambda x, i: torch.bincount(i)),
        (1, lambda x, i: x.sum().item()),
        (1, lambda x, i: bool(x.sum() > 0)),
        (1, lambda x, i: i.tolist()),
        (1, lambda x, i: x.cpu()),
        (1, lambda x, i: x.to("cpu")),
        (1, lambda x, i: x.numpy()),
        (1, lambda x, i: x[i > 1]),
        (1, lambda x, i: x.masked_select((i > 1)[:, None])),
        (1, lambda x, i: torch.nonzero(i)),
        (1, lambda x, i: x.repeat_interleave(i, 0)),
        (1, lambda x, i: torch.tensor([1, 2], device="cpu")),
        (0, lambda x, i: torch.tensor([1, 2]).tolist()),
        (0, lambda x, i: torch.zeros(3)[1:].add(1).tolist()),
        (1, lambda x, i: torch.zeros(3, device="cpu").tolist()),
        (1, lambda x, i: float(x.cpu()[1:].sum() + 1)),
        (1, lambda x, i: float(torch.cat([torch.zeros(4, 3), x]).sum())),
        (1, lambda x, i: torch.unique(i)),
        (0, lambda x, i: x.repeat_interleave(i, 0, output_size=6)),
        (0, lambda x, i: x.repeat_interleave(2, 0)),
        (0, lambda x, i: F.one_hot(i, 4)),
        (0, lambda x, i: x[i]),
        (0, lambda x, i: x.to(torch.float64)),
        (1, lambda x, i: x.to(x.device)),
        (0, lambda x, i: x.__setitem__(i > 1, 0)),
        (0, lambda x, i: x.__setitem__(slice(1, 2), 0)),
        (1, lambda x, i: x.__setitem__(i, 0)),
        (1, lambda x, i: x.__setitem__((i, 0), 0)),
        (1, lambda x, i: x.__setitem__(i > 1, x[:1].clone())),
        (0, lambda x, i: torch.nonzero_static(i, size=2)),
    ],
)
def test_waits_are_counted(waits: int, code: object) -> None:
    x, i = torch.randn(4, 3), torch.tensor([0, 1, 2, 3])
    with Watch() as watch, watch.phase("here"):
        code(x, i)  # type: ignore[operator]
    assert watch.waits["here"] == waits
    assert all(found.where.startswith("tests/test_gpu_branch.py:") for found in watch.found_waits)


def test_scatters_are_collected_with_their_type_also_in_a_backward_pass() -> None:
    i = torch.tensor([0, 1, 1, 2])
    for gather in (
        lambda x: x.index_select(0, i),
        lambda x: x[i],
        lambda x: F.embedding(i, x),
        lambda x: x.repeat_interleave(i, 0, output_size=4),
        lambda x: x.gather(0, i[:, None].expand(-1, 3)),
    ):
        for dtype in (torch.bfloat16, torch.float32):
            x = torch.randn(4, 3, dtype=dtype, requires_grad=True)
            with Watch() as watch:
                y = gather(x).sum()
                assert watch.scatters == []
                y.backward()
            assert {found.dtype for found in watch.scatters} == {dtype}
            assert len(watch.low_precision_scatters()) == (dtype == torch.bfloat16)
    x = torch.zeros(4, dtype=torch.bfloat16)
    with Watch() as watch:
        x.index_put((i,), torch.ones(4, dtype=torch.bfloat16))
        x.index_copy(0, i, torch.ones(4, dtype=torch.bfloat16))
        assert watch.scatters == []
        x.index_put((i,), torch.ones(4, dtype=torch.bfloat16), accumulate=True)
    assert [found.name for found in watch.low_precision_scatters()] == ["index_put"]


def test_waits_of_a_pass_that_is_recomputed_backward_are_counted() -> None:
    def layer(x: torch.Tensor) -> torch.Tensor:
        return (x * x.detach().sum().tolist()).sin()

    y = checkpoint(layer, torch.ones(2, requires_grad=True), use_reentrant=False).sum()
    with Watch() as watch, watch.phase("backward"):
        y.backward()
    assert watch.waits["backward"] == 1


def test_kernels_are_counted_and_views_are_not() -> None:
    x = torch.randn(4, 6)
    with Watch() as watch, watch.phase("here"):
        y = (
            torch.cat([x.view(2, 12).t()[:3], x.new_empty(1, 2)])
            .sort(0)
            .values.index_select(0, torch.arange(2, device="cpu"))
        )
        y.unsqueeze(0).expand(2, -1, -1).detach().split(1)
    assert watch.by_name["here"] == {"aten.cat": 1, "aten.sort": 1, "aten.index_select": 1, "aten.arange": 1}
    assert watch.kernels["here"] == 4


def test_branches_are_forced_inside_and_only_there() -> None:
    x, w = torch.randn(8, 8, dtype=torch.bfloat16), torch.randn(2, 8, 8, dtype=torch.bfloat16)
    assert not grouped_matmul.fused_kernel_fits(x, w)
    with gpu_branch():
        assert grouped_matmul.fused_kernel_fits(x, w)
        with Watch() as watch, watch.phase("here"):
            grouped_matmul.grouped_matmul(x, w, torch.tensor([3, 5], device="cpu"))
    assert watch.by_name["here"]["aten._grouped_mm"] == 1 and watch.waits["here"] == 1  # the counts made here
    assert not grouped_matmul.fused_kernel_fits(x, w)
