"""AdamW that touches the rows of a step, against `torch.optim.AdamW` over all rows in every step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from parallel.tables.adamw import RowAdamW
from tests.gpu_branch import gpu_branch

ROWS, DIM, STEPS = 40, 6, 400


def lr_of(step: int) -> float:
    return 1e-2 * min(1.0, step / 40) * (1 - 0.9 * step / STEPS)


def both(
    betas: tuple[float, float], eps: float, decay: float, size: float, catch_up: int = 0
) -> tuple[dict[str, float], Tensor]:
    """Largest distances: of what is read in any step, and of the end; and how far the rows have gone."""
    generator = torch.Generator().manual_seed(0)
    start_RD = torch.randn(ROWS, DIM, generator=generator)
    all_rows = torch.nn.Parameter(start_RD.double())
    oracle = torch.optim.AdamW([all_rows], betas=betas, eps=eps, weight_decay=decay)
    rows = RowAdamW(start_RD.clone(), betas, eps, decay)
    farthest = 0.0
    for step in range(STEPS):
        # One row in fifty, the last three never, and now and then nobody.
        row_X = (torch.rand(ROWS - 3, generator=generator) < 0.02).nonzero()[:, 0]
        grad_XD = torch.randn(len(row_X), DIM, generator=generator) * size
        farthest = max(farthest, float((rows.read(torch.arange(ROWS)) - all_rows.detach()).abs().max()))
        oracle.param_groups[0]["lr"] = lr_of(step)
        all_rows.grad = torch.zeros_like(all_rows).index_copy(0, row_X, grad_XD.double())
        oracle.step()
        rows.update(row_X, grad_XD, lr_of(step))
        if catch_up and step % catch_up == 0:
            rows.catch_up()
    rows.catch_up()
    state = oracle.state[all_rows]
    found = {
        "read": farthest,
        "weight": float((rows.weight_LD - all_rows.detach()).abs().max()),
        "exp_avg": float((rows.exp_avg_LD - state["exp_avg"]).abs().max()) / size,
        "exp_avg_sq": float((rows.exp_avg_sq_LD - state["exp_avg_sq"]).abs().max()) / size**2,
    }
    assert rows.step == STEPS
    return found, (all_rows - start_RD).detach()


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95), (0.8, 0.99), (0.0, 0.99)])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("catch_up", [0, 70])
def test_rows_go_where_dense_adamw_takes_them(betas: tuple[float, float], decay: float, catch_up: int) -> None:
    found, moved_RD = both(betas, 1e-8, decay, 1e-2, catch_up)
    assert float(moved_RD.abs().max()) > 0.1
    # Rows that no step has touched decay, and do nothing else.
    assert bool(moved_RD[-3:].any()) is bool(decay)
    assert max(found.values()) < 3e-6, found


@pytest.mark.parametrize("size", [1e-6, 1e-7, 1e-8, 1e-9])
def test_gradients_as_small_as_epsilon_are_off_in_the_fifth_digit(size: float) -> None:
    found, moved_RD = both((0.9, 0.999), 1e-8, 0.1, size)
    assert found["read"] < 3e-5 * max(1.0, float(moved_RD.abs().max()))


def test_a_row_of_every_step_is_plain_adamw_and_reading_changes_nothing() -> None:
    start_RD = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    rows = RowAdamW(start_RD.clone(), (0.9, 0.999), 1e-8, 0.1)
    all_rows = torch.nn.Parameter(start_RD.clone())
    oracle = torch.optim.AdamW([all_rows], lr=0.1, weight_decay=0.1)
    for _ in range(5):
        all_rows.grad = all_rows.detach() * 2
        before = [t.clone() for t in (rows.weight_LD, rows.exp_avg_LD, rows.exp_avg_sq_LD)]
        value_RD = rows.read(torch.arange(3))
        for was, now in zip(before, (rows.weight_LD, rows.exp_avg_LD, rows.exp_avg_sq_LD), strict=True):
            assert torch.equal(was, now)
        assert torch.equal(value_RD, rows.weight_LD)
        rows.update(torch.arange(3), value_RD * 2, 0.1)
        oracle.step()
    torch.testing.assert_close(rows.weight_LD, all_rows.detach(), rtol=1e-6, atol=1e-6)


def test_a_row_that_is_named_twice_on_a_gpu_is_updated_once() -> None:
    once, twice = (RowAdamW(torch.ones(4, 2), (0.9, 0.999), 1e-8, 0.1) for _ in range(2))
    once.update(torch.tensor([1, 3]), torch.tensor([[0.5, 1.0], [2.0, -1.0]]), 0.1)
    with gpu_branch():
        twice.update(torch.tensor([1, 3, 3, 3]), torch.tensor([[0.5, 1.0], [2.0, -1.0], [2.0, -1.0], [2.0, -1.0]]), 0.1)
    for name in ("weight_LD", "exp_avg_LD", "exp_avg_sq_LD"):
        assert torch.equal(getattr(once, name), getattr(twice, name))
    # 1 - lr * decay = 0.99, and a first step of AdamW goes lr into the direction of the gradient.
    torch.testing.assert_close(once.weight_LD[1], torch.tensor([0.89, 0.89]))
    torch.testing.assert_close(once.weight_LD[3], torch.tensor([0.89, 1.09]))
    assert once.weight_LD[0].tolist() == [1.0, 1.0]
    assert once.read(torch.tensor([0])).tolist() == [[pytest.approx(0.99)] * 2]


def test_a_state_goes_on_where_it_was_left() -> None:
    """Steps made before a restart count: bias correction and decay go on from there."""
    ways = []
    for restart in (False, True):
        rows = RowAdamW(torch.ones(5, 2), (0.9, 0.999), 1e-8, 0.1)
        for step in range(12):
            if step == 7:
                rows.catch_up()
                if restart:
                    state = rows.weight_LD.clone(), rows.exp_avg_LD.clone(), rows.exp_avg_sq_LD.clone()
                    rows = RowAdamW(torch.full((5, 2), 9.0), (0.9, 0.999), 1e-8, 0.1)
                    for mine, its in zip((rows.weight_LD, rows.exp_avg_LD, rows.exp_avg_sq_LD), state, strict=True):
                        mine.copy_(its)
                    rows.start_at(7)
            rows.update(torch.tensor([step % 4]), torch.full((1, 2), float(step)), 0.05)
        ways.append(rows.read(torch.arange(5)))
    assert torch.equal(*ways)


def test_more_steps_than_were_foreseen() -> None:
    rows = RowAdamW(torch.ones(2, 2), (0.9, 0.999), 1e-8, 0.5)
    for _ in range(3000):
        rows.update(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2), 1e-3)
    torch.testing.assert_close(rows.read(torch.arange(2)), torch.full((2, 2), (1 - 5e-4) ** 3000))


def test_momentum_that_outlives_the_mean_square_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optim.betas=\[0.9, 0.5\] do not go with a table that is spread"):
        RowAdamW(torch.ones(2, 2), (0.9, 0.5), 1e-8, 0.0)
