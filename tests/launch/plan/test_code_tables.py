"""What the plan says of spread tables, against a real engine's, and by hand."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from launch.plan.code_tables import UPDATED, UPDATED_ON_CPU, TableSize, table_sizes
from launch.plan.memory import Kept, Moment, StageSize, fullest_moment, stage_sizes
from parallel import init_distributed
from parallel.tables.adamw import RowAdamW
from parallel.tables.updates import RowUpdates
from tests.gpu_branch import gpu_branch
from tests.live_bytes import LiveBytes
from tests.parallel.tables.runs import Case, Net, make_engine
from tests.ranks import run_ranks


def _held(rank: int, world: int, case: Case) -> tuple[list[int], list[int], int]:
    """Bytes of each table; elements in ZeRO's hands, of the model without its tables."""
    init_distributed("cpu", 60)
    engine = make_engine(rank, world, case)
    tables = []
    for table in engine.module.tables.values():
        parts = [table.weight]
        if table.updates is not None:
            rows = table.updates.optimizer
            parts += [rows.exp_avg_LD, rows.exp_avg_sq_LD, rows.place_L]
        tables.append(sum(part.nbytes for part in parts))
    zeros = [sum(p.numel() for p in group) for group in engine._zero.bit16_groups]
    planned = [sum(stage.groups.values()) for stage in stage_sizes(engine.module, ())]
    return tables, planned, sum(zeros)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_bytes_equal_those_of_a_real_build(world: int, frozen: bool) -> None:
    case = Case(frozen=frozen, precision="bf16")
    with torch.device("meta"):
        sizes = table_sizes(Net(case))
    assert sizes == [TableSize(41, 8, not frozen)] * 2
    found = run_ranks(_held, world, case)
    fullest = max(rank[0] for rank in found)
    assert fullest == [size.kept(world) for size in sizes]
    # Of 41, 21 and 11 rows: 8 fp32 numbers, three of each where it is trained, and its last step.
    assert fullest[0] == ({1: 41, 2: 21, 4: 11}[world]) * (32 if frozen else 100)
    for _, planned, in_zero in found:
        assert sum(planned) == in_zero


def test_a_small_table_is_a_parameter_like_any_other() -> None:
    with torch.device("meta"):
        small, spread = Net(Case(spread_above=41)), Net(Case())
    assert table_sizes(small) == []
    elements = [sum(sum(stage.groups.values()) for stage in stage_sizes(net, ())) for net in (small, spread)]
    assert elements[0] - elements[1] == 2 * 41 * 8


@pytest.mark.parametrize("passes", [1, 4])
@pytest.mark.parametrize("cpu", [False, True])
def test_what_an_update_needs_beside(cpu: bool, passes: int) -> None:
    rows = RowUpdates(RowAdamW(torch.ones(8_000, 256), (0.9, 0.999), 1e-8, 0.1), 2)
    parts = torch.randperm(8_000)[:4000].chunk(passes)
    whole = 4000 * 256 * 4
    grads = [torch.ones(len(row_S), 256) for row_S in parts]
    with nullcontext() if cpu else gpu_branch(), LiveBytes() as live:
        for row_S, grad_SD in zip(parts, grads, strict=True):
            rows.read(row_S).backward(grad_SD)
        grads.clear()
        rows.gather()
        rows.update(0.1, 0.5)
    # The gradients were there before; those of several passes are joined.
    times = (live.peak - live.held) / whole + 1
    assert -1.2 < times - (UPDATED_ON_CPU if cpu else UPDATED) < 0.3
    assert rows.arrived == []


def test_traffic_and_the_fullest_moment_by_hand() -> None:
    # A quarter of 100 ids of 8 bytes, and of rows of 16 bf16 numbers there and of gradients back, stays at home.
    assert TableSize(1000, 16).sent(100, 4, 2) == 100 * (8 + 64) * 0.75
    assert TableSize(1000, 16, trained=False).sent(100, 4, 2) == 100 * (8 + 32) * 0.75
    stages, kept = [StageSize({(False, True): 8})] * 4, Kept([100.0] * 4, [7.0] * 4)
    fixed = (stages, kept, 4, 1, 4)
    # Four micro-batches of 5 bytes: three are there in the last backward pass.
    assert fullest_moment(*fixed, zero_stage=1, accumulation=4, rows=5) == Moment(407, 32 + 4 * 32 + 15)
    # Or the update is the fullest: 4 x 8 of ZeRO's, and seven times 4 x 50.
    assert fullest_moment(*fixed, zero_stage=1, accumulation=4, rows=50) == Moment(0, 4 * 8 + 7 * 200)
