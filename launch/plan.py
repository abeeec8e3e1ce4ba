"""The verb `plan`: does a run fit, how long is a step, what does it send. Nothing runs and no accelerator is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_shards import DatasetSchema, open_data
from data_shards.errors import ManifestError
from data_shards.records.statistics import ModalityStatistics, SplitStatistics, TaskStatistics
from launch.cost import MODELLED, CostModel, Layout, StepCost
from launch.errors import UsageError
from launch.output import people, print_json_line, print_table
from parallel import largest_legal
from parallel.mesh import divisors
from trainer.config.recipe import load_recipe
from trainer.config.run_config import RunConfig
from trainer.worker.devices import find_device, measured_device
from trainer.worker.seats import crossing, layout_lines, node_sizes, planned_seats

MOST_GPUS = 1 << 16


def plan_recipe(
    recipe: str, overrides: Sequence[str], gpus: int | None, gpu: str, schema: str | None, presence: float
) -> None:
    """Print the plan of a recipe; the last line is one JSON object."""
    config = load_recipe(recipe, overrides)
    if config.job == "evaluate":
        raise UsageError(f"recipe {recipe} has job: evaluate; plan knows the costs of training")
    try:
        device = measured_device(config.parallel.threads_per_worker) if gpu == "cpu" else find_device(gpu)
    except ValueError as error:
        raise UsageError(f"--gpu: {error}, cpu") from None
    described, statistics, source = data_statistics(config, schema, presence)
    head = {"recipe": recipe, "gpu": device.name, "data": source}
    count = gpus or config.parallel.workers
    if config.job == "fusemoe":
        result = head | make_plan(config, CostModel(config, described, statistics, device), count)
        _show(result)
    else:
        from launch.mope_plan import plan_frozen, show_frozen

        result = head | plan_frozen(config, described, statistics, device, count)
        show_frozen(result)
    print_json_line(result)


def data_statistics(
    config: RunConfig, schema: str | None, presence: float
) -> tuple[DatasetSchema, SplitStatistics, str]:
    """Schema, presence and lengths: of the packed data if it is there, else of a schema file and a stated presence."""
    if schema is None:
        try:
            manifest = open_data(config.data)
        except ManifestError as error:
            raise UsageError(f"{error}; pack the data, or give --schema FILE (and --presence) instead") from None
        manifest.column(config.data.split, "train")
        return manifest.schema, manifest.statistics[config.data.split], "manifest"
    try:
        described = DatasetSchema.from_json(Path(schema).read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"--schema {schema}: {' '.join(str(error).split())}") from None
    return described, stated_statistics(described, presence), f"schema, {presence:g} of all modalities present"


def stated_statistics(schema: DatasetSchema, presence: float, records: int = 1000) -> SplitStatistics:
    """Statistics of data that nobody has packed: every modality in this share of the records, texts at full length.

    A series is taken to have 10 events a channel.
    """
    if not 0 < presence <= 1:
        raise UsageError(f"--presence {presence} must lie in (0, 1]")
    present = round(presence * records)
    modalities = {}
    for spec in schema.modalities:
        count = 10 * present if spec.kind == "series" else present
        mean = float(spec.max_length or 0) if spec.kind == "text" else 0.0
        zeros = (0.0,) * spec.width
        modalities[spec.name] = ModalityStatistics(
            present, (count,) * spec.width, (mean,) * spec.width, zeros, zeros, zeros
        )
    tasks = {task.name: TaskStatistics(records, (), (0.0,) * task.dim, (1.0,) * task.dim) for task in schema.tasks}
    return SplitStatistics(records, modalities, tasks)


def make_plan(config: RunConfig, model: CostModel, gpus: int) -> dict[str, Any]:
    """The layout that the recipe asks for on this many devices, and the nearest one that fits if it does not.

    An expert-parallel degree that does not divide becomes the largest legal one below it.
    """
    if gpus < 1:
        raise UsageError(f"--gpus {gpus} must be at least 1")
    parallel, training = config.parallel, config.training
    degree = largest_legal(gpus, parallel.expert_parallel, config.model.moe.experts)
    asked = Layout(gpus, degree, parallel.zero_stage, training.accumulation, training.activation_checkpointing)
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
        "nearest": None if cost.fits or nearest is None else nearest.as_dict(),
        "modelled": list(MODELLED),
    }


def nearest_fit(model: CostModel, asked: Layout, config: RunConfig) -> StepCost | None:
    """The layout that fits with the fewest changes, the fastest of those; more devices only if nothing else helps."""
    world = asked.world
    while world <= MOST_GPUS:
        fitting = [cost for cost in map(model.cost, _layouts(asked, world, config)) if cost.fits]
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


def _changes(asked: Layout, layout: Layout) -> int:
    pairs = [(getattr(asked, name), getattr(layout, name)) for name in Layout.__dataclass_fields__ if name != "world"]
    return sum(before != after for before, after in pairs)


def _show(result: dict[str, Any]) -> None:
    sizes = [(name.replace("_", " "), value / 2**30) for name, value in result["bytes"].items()]
    print_table("memory of the fullest rank", ("what", "GiB"), sizes)
    traffic = [
        (kind.replace("_", " "), value / 2**20, result["links"][kind])
        for kind, value in result["traffic_bytes"].items()
    ]
    print_table("sent by a rank in a step", ("what", "MiB", "over"), traffic)
    times = [(name, 1000 * value) for name, value in result["seconds"].items()]
    print_table("predicted time of a step", ("what", "ms"), [*times, ("step", 1000 * result["step_s"])])
    counts = result["parameters"]
    people.print(
        f"{counts['total']:,} parameters ({counts['active']:,} active a token), {result['tokens']:,.0f} tokens and "
        f"{result['flops'] / 1e12:.3g} TFLOP a step, {result['tokens_per_second']:,.0f} tokens/s, "
        f"MFU {result['mfu']:.0%}"
    )
    for line in result["layout"]:
        people.print(line)
    if result["note"]:
        people.print(result["note"])
    if result["records_per_micro_batch"] < 1:
        people.print("fewer records than ranks in a micro-batch: some ranks have nothing to do")
    people.print(_verdict(result))
    people.print(f"modelled, not counted: {', '.join(result['modelled'])}; data: {result['data']}")


def _verdict(result: dict[str, Any]) -> str:
    room = f"{result['bytes']['total'] / 2**30:.3g} of {result['capacity_bytes'] / 2**30:.3g} GiB"
    place = f"{result['gpus']} x {result['gpu']}"
    if result["fits"]:
        return f"fits on {place}: {room}"
    nearest = result["nearest"]
    if nearest is None:
        return f"does not fit on {place} ({room}), nor on any number of them up to {MOST_GPUS:,}"
    words = {
        "parallel.workers": nearest["world"],
        "parallel.expert_parallel": nearest["expert_parallel"],
        "parallel.zero_stage": nearest["zero_stage"],
        "training.accumulation": nearest["accumulation"],
        "training.activation_checkpointing": str(nearest["activation_checkpointing"]).lower(),
    }
    return f"does not fit on {place} ({room}); nearest that does: {' '.join(f'{k}={v}' for k, v in words.items())}"
