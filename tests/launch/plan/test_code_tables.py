"""What the plan says of spread tables, against a real engine's, and by hand."""

from __future__ import annotations

import pytest
import torch

from launch.plan.code_tables import UPDATED, TableSize, table_sizes
from launch.plan.memory import Kept, Moment, StageSize, fullest_moment, stage_sizes
from parallel import init_distributed
from parallel.tables.adamw import RowAdamW
from parallel.tables.updates import RowUpdates
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
            parts += [rows.exp_avg_LD, rows.exp_avg_sq_LD, rows._place_L]
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


def test_what_an_update_needs_beside() -> None:
    rows = RowUpdates(RowAdamW(torch.ones(20_000, 64), (0.9, 0.999), 1e-8, 0.1), 2)
    row_S = torch.randperm(20_000)[:5000]
    rows.arrived = [(row_S, torch.ones(5000, 64))]
    with LiveBytes() as live:
        rows.gather()
        rows.update(0.1, 0.5)
    # What had arrived is held when the count begins.
    times = 1 + (live.peak - live.held) / (5000 * 64 * 4)
    assert UPDATED - 0.5 < times < UPDATED + 0.5


def test_traffic_and_the_fullest_moment_by_hand() -> None:
    # A quarter of 100 ids of 8 bytes, and of rows of 16 bf16 numbers there and of gradients back, stays at home.
    assert TableSize(1000, 16).sent(100, 4, 2) == 100 * (8 + 64) * 0.75
    assert TableSize(1000, 16, trained=False).sent(100, 4, 2) == 100 * (8 + 32) * 0.75
    stages, kept = [StageSize({(False, True): 8})] * 4, Kept([100.0] * 4, [7.0] * 4)
    fixed = (stages, kept, 4, 1, 4)
    # Four micro-batches of 5 bytes: three are there in the last backward pass.
    assert fullest_moment(*fixed, zero_stage=1, accumulation=4, rows=5) == Moment(407, 32 + 4 * 32 + 15)
    # Or the update is the fullest: 4 x 8 of ZeRO's, and eight times 4 x 50.
    assert fullest_moment(*fixed, zero_stage=1, accumulation=4, rows=50) == Moment(0, 4 * 8 + 8 * 200)
