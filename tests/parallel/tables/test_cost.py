"""What a step with a large table does: operations that follow the codes present, none that a GPU would wait for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from parallel import init_distributed
from tests.gpu_branch import Watch, gpu_branch
from tests.parallel.tables.runs import Case, make_engine
from tests.ranks import run_ranks

pytestmark = pytest.mark.together

# Hand out what they were given, written at some rows.
IN_PLACE = {"index_copy_", "index_fill_", "detach", "alias", "view", "t", "_unsafe_view"}


class Sizes(TorchDispatchMode):
    """Elements that operations have written, by name; and operations that wrote a whole table."""

    def __init__(self, whole: int) -> None:
        super().__init__()
        self.whole, self.written, self.large = whole, 0, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor) and name not in IN_PLACE:
                self.written += tensor.numel()
                if tensor.numel() >= self.whole:
                    self.large[name] += 1
        return result


def _step(rank: int, world: int, rows: int) -> tuple[int, dict[str, int]]:
    init_distributed("cpu", 60)
    engine = make_engine(rank, world, Case(rows=rows))
    ids_O = torch.arange(24) * (rows // 24)

    def step() -> None:
        engine.backward(engine(ids_O)[0].square().sum())
        assert engine.step()

    step()  # DeepSpeed links states in its first step
    step()
    with Sizes(rows // world) as sizes:
        step()
    engine.close()
    return sizes.written, dict(sizes.large)


@pytest.mark.parametrize("world", [1, 2])
def test_a_step_writes_what_its_codes_need_however_many_rows_there_are(world: int) -> None:
    small, large = run_ranks(_step, world, 2_400), run_ranks(_step, world, 240_000)
    for (written, _), (written_too, whole) in zip(small, large, strict=True):
        # Not to the number: experts get other tokens of other rows.
        assert written > 10_000 and abs(written_too / written - 1) < 0.01
        assert whole == {}


def test_no_wait_and_no_sum_by_address_in_a_pass_or_an_update() -> None:
    init_distributed("cpu", 60)
    engine = make_engine(0, 1, Case(rows=1000))
    table = engine.module.tables["drugs"]
    plan = table.lay_out(torch.tensor([5, 999, 5, 0]))
    for _ in range(2):  # the second one has rows that have missed nothing and rows that have
        with gpu_branch(), Watch() as watch:
            with watch.phase("forward"):
                row_UD = table(plan)
                loss = plan.uses.spread(row_UD).square().sum()
            with watch.phase("backward"):
                loss.backward()
            with watch.phase("update"):
                table.updates.gather()
                table.updates.update(0.1, 0.5)
        assert watch.waits == {} and watch.scatters == []
        # Launches of a table, not of its rows.
        assert watch.kernels["forward"] < 40 and watch.kernels["update"] < 70
        plan = table.lay_out(torch.tensor([7, 999]))
    engine.close()


def test_what_a_table_keeps_is_three_numbers_an_element_and_one_a_row() -> None:
    init_distributed("cpu", 60)
    engine = make_engine(0, 1, Case(rows=1000))
    rows = engine.module.tables["drugs"].updates.optimizer
    kept = [rows.weight_LD, rows.exp_avg_LD, rows.exp_avg_sq_LD, rows.place_L]
    assert sum(t.nbytes for t in kept) == 1000 * (8 * 12 + 4)
    assert rows.weight_LD.data_ptr() == engine.module.tables["drugs"].weight.data_ptr()
    engine.close()
