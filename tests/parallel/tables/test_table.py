"""A table looked up by codes, whole on one rank: which rows come, what gradient they get, where they begin."""

from __future__ import annotations

import pytest
import torch

from parallel import CodeTable
from parallel.tables.initial import PORTION, draw_rows


def test_rows_come_for_distinct_ids_and_their_gradient_is_added_up() -> None:
    table = CodeTable(10, 3, (0, "codes"))
    ids_O = torch.tensor([5, 2, 5, 9, 5])
    plan = table.lay_out(ids_O)
    assert plan.ids_U.tolist() == [2, 5, 9] and plan.uses.segment_N.tolist() == [1, 0, 1, 2, 1]
    assert plan.counts == (3,)
    row_UD = table(plan)
    assert torch.equal(row_UD, table.weight[[2, 5, 9]])
    x_OD = plan.uses.spread(row_UD)
    assert torch.equal(x_OD, table.weight[ids_O])
    (x_OD * torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])[:, None]).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad[:, 0].tolist() == [0, 0, 2, 0, 0, 21, 0, 0, 0, 8]


def test_no_code_at_all_gives_no_row_and_a_gradient_of_zeros() -> None:
    table = CodeTable(4, 3, (0, "codes"))
    plan = table.lay_out(torch.zeros(0, dtype=torch.int64))
    row_UD = table(plan)
    assert row_UD.shape == (0, 3) and plan.uses.spread(row_UD).shape == (0, 3)
    row_UD.sum().backward()
    assert table.weight.grad is not None and not table.weight.grad.any()


@pytest.mark.parametrize("wrong", [-1, 10])
def test_a_code_without_a_row_is_named(wrong: int) -> None:
    table = CodeTable(10, 3, (0, "codes"))
    with pytest.raises(ValueError, match=f"code {wrong} has no row in a table of 10"):
        table.lay_out(torch.tensor([3, wrong]))


def test_an_initial_row_depends_on_key_and_id_only() -> None:
    rows = 2 * PORTION + 10
    whole = CodeTable(rows, 4, (7, "codes"), std=0.5)
    assert 0.45 < whole.weight.std().item() < 0.55
    for first, last in [(0, 3), (PORTION - 2, PORTION + 2), (PORTION, rows), (5, 5), (rows - 1, rows)]:
        part_LD = torch.empty(last - first, 4)
        draw_rows(part_LD, first, (7, "codes"), 0.5)
        assert torch.equal(part_LD, whole.weight[first:last])
    assert not torch.equal(CodeTable(rows, 4, (8, "codes"), std=0.5).weight, whole.weight)
    # Neighbouring portions are not each other's.
    assert not torch.equal(whole.weight[0], whole.weight[PORTION])
