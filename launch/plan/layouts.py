"""The layout that a recipe asks for, and the nearest one that fits."""

from __future__ import annotations

import math
from typing import Any

from launch.errors import UsageError
from launch.plan.cost import MODELLED, CostModel, Layout, StepCost
from parallel import largest_legal
from parallel.mesh import divisors
from trainer.config.run_config import RunConfig
from trainer.worker.seats import crossing, layout_lines, node_sizes, planned_seats

MOST_GPUS = 1 << 16


def make_plan(config: RunConfig, model: CostModel, gpus: int) -> dict[str, Any]:
    """The layout that the recipe asks for on this many devices, and the nearest one that fits if it does not.

    An expert-parallel degree that does not divide becomes the largest legal one below it.
    """
    if gpus < 1:
        raise UsageError(f"--gpus {gpus} must be at least 1")
    parallel, training = config.parallel, config.training
    degree = largest_legal(gpus, parallel.expert_parallel, config.model.moe.experts)
    asked = Layout(gpus, degree, parallel.zero_stage, training.accumulation, training.activation_checkpointing)
    try:
        model.refuse(asked)
    except ValueError as error:
        raise UsageError(str(error)) from None
    cost = model.cost(asked)
    nearest = cost if cost.fits else nearest_fit(model, asked, config)
    legal = degree == parallel.expert_parallel
    seats = planned_seats(gpus, model.device.per_host, "cpu" if model.device.name == "cpu" else "cuda")
    note = None if legal else f"expert_parallel={parallel.expert_parallel} does not divide; {degree} is used"
    if not parallel.experts_across_nodes and math.gcd(*node_sizes(seats)) % degree:
        note = crossing(degree, node_sizes(seats))
    return {
        "gpus": gpus,
        "parameters": model.parameters(),
        **cost.as_dict(),
        "tokens_per_second": cost.tokens / cost.step_s,
        "records_per_micro_batch": training.batch_size / gpus / asked.accumulation,
        "all_to_all_bytes": cost.traffic["all_to_all"],
        "reduce_bytes": sum(value for kind, value in cost.traffic.items() if kind != "all_to_all"),
        "layout": layout_lines(seats, degree, config.model.moe.experts),
        "note": note,
        "slow": model.slow(asked),
        "nearest": None if cost.fits or nearest is None else nearest.as_dict(),
        "modelled": list(MODELLED),
    }


def nearest_fit(model: CostModel, asked: Layout, config: RunConfig) -> StepCost | None:
    """The layout that fits with the fewest changes, the fastest of those; more devices only if nothing else helps."""
    world = asked.world
    while world <= MOST_GPUS:
        layouts = [layout for layout in _layouts(asked, world, config) if _runs(model, layout)]
        fitting = [cost for cost in map(model.cost, layouts) if cost.fits]
        if fitting:
            return min(fitting, key=lambda cost: (_changes(asked, cost.layout), cost.step_s))
        world *= 2
    return None


def _layouts(asked: Layout, world: int, config: RunConfig) -> list[Layout]:
    experts = config.model.moe.experts
    micro, most = [asked.accumulation], max(1, config.training.batch_size // world)
    while micro[-1] * 2 <= most:
        micro.append(micro[-1] * 2)
    return [
        Layout(world, degree, stage, accumulation, recompute)
        for degree in divisors(world)
        if experts % degree == 0
        for stage in (1, 2)
        for accumulation in micro
        for recompute in (False, True)
    ]


def _runs(model: CostModel, layout: Layout) -> bool:
    try:
        model.refuse(layout)
    except ValueError:
        return False
    return True


def _changes(asked: Layout, layout: Layout) -> int:
    pairs = [(getattr(asked, name), getattr(layout, name)) for name in Layout.__dataclass_fields__ if name != "world"]
    return sum(before != after for before, after in pairs)
