"""The plan's memory against what is really alive at the fullest moment of a step, through the engine of training."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.common import plain_statistics, presence, random_batch, series_schema
from launch.plan.cost import CostModel, Layout
from launch.plan.memory import Kept, Moment, StageSize, fullest_moment
from parallel import Engine, ParallelConfig, balance_losses, create_mesh, init_distributed, reduce_stats
from tests.live_bytes import LiveBytes
from tests.ranks import run_ranks
from tests.trainer.tiny import changed
from trainer.config.run_config import RunConfig
from trainer.models.flops import FlopCounter
from trainer.models.fusemoe.job_type import FuseMoEJob
from trainer.models.fusemoe.model import FuseMoE
from trainer.models.job_type import exempt_from_decay
from trainer.worker.devices import Device

CPU = Device("cpu", (), 1e12, 1e12, 2**34, 1e11, 1e10, 1e9)
SCHEMA = series_schema(4)
# Where activations are most of it, and where parameters are.
SIZES = {"activations": (64, 128, 8, 32), "parameters": (64, 256, 32, 4)}
GRID = [
    (size, world, degree, stage, accumulation, precision, recompute)
    for size in SIZES
    for (world, degree), stage, accumulation, precision, recompute in itertools.product(
        ((2, 1), (4, 2)), (1, 2), (1, 4), ("fp32", "bf16"), (False, True)
    )
]
FAST = [
    ("activations", 2, 1, 1, 1, "fp32", False),
    ("activations", 2, 1, 1, 1, "bf16", True),
    ("parameters", 2, 1, 1, 4, "bf16", False),
    ("parameters", 2, 1, 2, 4, "fp32", True),
    ("parameters", 4, 2, 1, 1, "fp32", True),
]


def _run(case: tuple[Any, ...]) -> tuple[RunConfig, Layout, int]:
    size, world, degree, stage, accumulation, precision, recompute = case
    dim, hidden, experts, records = SIZES[size]
    moe = {"experts": experts, "top_k": 2, "hidden": hidden, "forced_balance": True}
    model = {"dim": dim, "layers": 4, "heads": 4, "bins": 8, "attention": "factorized", "moe": moe}
    model |= {"missing_embedding": False, "dropout": 0.1}
    tree = {"name": "run", "data": {"url": "nowhere"}, "model": model, "training": {}, "parallel": {}}
    changes = {"training__batch_size": records * world * accumulation, "parallel__precision": precision}
    return changed(tree, changes), Layout(world, degree, stage, accumulation, recompute), records


def _batches(records: int, accumulation: int) -> list[Any]:
    return [random_batch(SCHEMA, presence(records, 4, 4), seed=i) for i in range(accumulation)]


def _measured(rank: int, world: int, case: tuple[Any, ...]) -> tuple[int, int, list[Any]]:
    """Bytes alive between steps, and at the fullest moment of the second step, beside the batches themselves."""
    run, layout, records = _run(case)
    init_distributed("cpu")
    moe = run.model.moe
    mesh = create_mesh(ParallelConfig(workers=world, expert_parallel=layout.expert_parallel), moe)
    torch.manual_seed(0)
    network = FuseMoE(SCHEMA, ["label"], plain_statistics(SCHEMA), run.model, mesh.dispatcher(), 0)
    network.recompute = layout.activation_checkpointing
    engine = Engine(
        network,
        mesh,
        lr=1e-3,
        clip=1.0,
        zero_stage=layout.zero_stage,
        precision=run.parallel.precision,
        accumulation=layout.accumulation,
        no_decay=partial(exempt_from_decay, FuseMoEJob.no_decay),
    )
    engine.train()

    def step() -> None:
        for batch in _batches(records, layout.accumulation):
            output = engine(batch)
            loss = sum(logits.float().square().mean() for logits in output.logits.values())
            loss = loss + moe.balance * balance_losses(reduce_stats(output.routing), moe)["balance"]
            del output
            engine.backward(loss)
        engine.step()

    step()
    with LiveBytes() as live:
        step()
    at_peak = [(maker, size, total) for (maker, size), total in live.at_peak.most_common(20)]
    return live.held, live.peak, at_peak


def _planned(case: tuple[Any, ...]) -> dict[str, int]:
    run, layout, records = _run(case)
    model = CostModel(run, SCHEMA, plain_statistics(SCHEMA), CPU)
    counter = FlopCounter(SCHEMA, {"label": 1}, run.model, "factorized")
    one = counter.measure(_batches(records, 1)[0])
    # The batches that are measured, not those of statistics.
    model.features = (one * layout.world * layout.accumulation).tolist()
    return model.cost(layout).bytes


def _compare(case: tuple[Any, ...]) -> None:
    planned = _planned(case)
    total, static = sum(planned.values()), sum(planned.values()) - planned["gradients"] - planned["activations"]
    for held, peak, at_peak in run_ranks(_measured, case[1], case):
        # Beside weights and moments: standardisers, Adam's t.
        assert 0 <= held - static < 0.02 * static + 400_000, (held, static)
        assert abs(total / peak - 1) < 0.05, (total / peak, planned, held, peak, at_peak)


@pytest.mark.parametrize("case", FAST, ids=str)
def test_memory_of_a_real_step(case: tuple[Any, ...]) -> None:
    _compare(case)


@pytest.mark.long
@pytest.mark.parametrize("case", [case for case in GRID if case not in FAST], ids=str)
def test_memory_of_a_real_step_in_every_way(case: tuple[Any, ...]) -> None:
    _compare(case)


DENSE, EXPERT = (False, True), (True, True)


def test_the_fullest_moment_by_hand() -> None:
    """Four stages of 8 dense elements on 4 ranks in fp32: 32 bytes made, a buffer of 32, 8 received and kept."""
    stages, kept = [StageSize({DENSE: 8})] * 4, Kept([100.0] * 4, [7.0] * 4)
    fixed = (stages, kept, 4, 1, 4)
    # While the last stage computes, nothing is under way.
    assert fullest_moment(*fixed, zero_stage=1, accumulation=1) == Moment(407, 32)
    # All four buffers are held; or the first two stages of before are under way, and the parts of all are there.
    assert fullest_moment(*fixed, zero_stage=1, accumulation=4) == Moment(407, 32 + 4 * 32)
    assert fullest_moment(*fixed, zero_stage=2, accumulation=4) == Moment(407, 32 + 2 * 40 + 4 * 8)
    assert fullest_moment(*fixed, zero_stage=2, accumulation=2) == Moment(407, 32 + 2 * 40 + 2 * 8)
    # Without activations the first stage is the fullest: it and another are under way, two others have arrived.
    empty = Kept([0.0] * 4, [0.0] * 4)
    assert fullest_moment(stages, empty, 4, 1, 4, 1, 1) == Moment(0, 32 + 2 * 40 + 2 * 8)
    assert fullest_moment(stages, empty, 4, 1, 4, 1, 1, cpu=True) == Moment(0, 32 + 2 * 40 + 2 * 8 + 32)
    assert fullest_moment(stages, empty, 4, 1, 2, 1, 1) == Moment(0, 16 + 2 * 40 + 2 * 8)
    # Experts that nobody else holds: the buffer is the part.
    alone = [StageSize({EXPERT: 8})] * 4
    assert fullest_moment(alone, empty, 4, 4, 4, 1, 1) == Moment(0, 32 + 4 * 32)
