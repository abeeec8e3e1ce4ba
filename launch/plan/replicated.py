"""What a job costs whose trained part is on every rank: how much that is, what it occupies, how long a step is.

The model itself is built without memory, from configurations alone, so weights need not be there. Parameters and the
bytes of weights, master weights and moments are exact; activations, FLOPs and time are modelled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from data_shards import DatasetSchema
from data_shards.records.statistics import SplitStatistics
from launch.errors import UsageError
from launch.output.tables import people, print_table
from launch.plan.code_tables import table_sizes
from launch.plan.constants import HALF_WIDTH, PASSES_OF_ACTIVATIONS, RESERVE
from launch.plan.memory import Kept, StageSize, fullest_moment, stage_sizes
from parallel import LocalDispatcher, MeshSpec
from parallel.tables.table import spread_tables
from trainer.config.run_config import RunConfig
from trainer.models.flops import is_expert, parameter_share
from trainer.models.gpu_limits import gpu_limits
from trainer.models.job_type import JobType
from trainer.worker.devices import Device

MODELLED = ("activations", "flops", "step_s")


def plan_replicated(
    job: JobType, config: RunConfig, schema: DatasetSchema, statistics: SplitStatistics, device: Device, gpus: int
) -> dict[str, Any]:
    """The plan as plain data.

    Raises:
        BackboneError: no configuration of a tower, no host, or data that they do not fit.
        UsageError: fewer than one device, or what a GPU's kernels cannot take.
        ValueError: parallel degrees that do not divide.
    """
    if gpus < 1:
        raise UsageError(f"--gpus {gpus} must be at least 1")
    config = job.resolve(config)
    MeshSpec(gpus, config.parallel.expert_parallel, config.model.moe.experts, config.model.moe.top_k).validate()
    names = [task.name for task in job.tasks(config, schema)]
    with torch.device("meta"):
        model = job.build(config, schema, names, statistics, LocalDispatcher(), weights=False)
    if device.name != "cpu" and config.parallel.precision == "bf16":
        try:
            gpu_limits(model).refuse()
        except ValueError as error:
            raise UsageError(str(error)) from None
    cost = job.cost(config, schema, statistics, model)
    records = config.training.batch_size / gpus / config.training.accumulation
    memory = _bytes(job, config, model, gpus) | {"activations": int(records * cost.activations * _width(config))}
    flops = cost.flops * config.training.batch_size
    capacity = device.memory * (1 - RESERVE)
    share = parameter_share(model)
    return {
        "gpus": gpus,
        "parameters": {"trained": int(share["trained"]), "frozen": int(share["frozen"]), "share": share["share"]},
        "bytes": memory | {"total": sum(memory.values())},
        "capacity_bytes": int(capacity),
        "flops": flops,
        "step_s": _seconds(config, cost.width, device, flops / gpus, memory),
        "records_per_micro_batch": records,
        "fits": sum(memory.values()) <= capacity,
        "modelled": list(MODELLED),
    }


def _width(config: RunConfig) -> int:
    return 2 if config.parallel.precision == "bf16" else 4


def _bytes(job: JobType, config: RunConfig, model: nn.Module, gpus: int) -> dict[str, int]:
    """Of one rank; what is frozen is on every rank, but for experts, which are spread as in training."""
    parallel = config.parallel
    degree = parallel.expert_parallel
    tables = spread_tables(model)
    frozen = sum(
        parameter.numel() // (degree if is_expert(name) else 1)
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and name not in tables
    )
    # The model holds all experts, a rank its share of them.
    stages = [
        StageSize({key: size // (degree if key[0] else 1) for key, size in stage.groups.items()})
        for stage in stage_sizes(model, job.no_decay)
    ]
    padded = sum(stage.elements(gpus, degree, kind) for stage in stages for kind in (False, True))
    shard = sum(own for stage in stages for _, own in stage.reductions(gpus, degree))
    # Activations are counted as one, so those of all stages are taken to be there throughout.
    nothing = Kept([0.0] * len(stages), [0.0] * len(stages))
    sizes = (gpus, degree, _width(config), parallel.zero_stage, config.training.accumulation)
    return {
        "frozen_parameters": frozen * _width(config),
        "trained_parameters": padded * _width(config),
        "master_weights": shard * 4,
        "moments": shard * 8,
        "code_tables": sum(table.kept(gpus) for table in table_sizes(model)),
        "gradients": int(fullest_moment(stages, nothing, *sizes).gradients),
    }


def _seconds(config: RunConfig, width: int, device: Device, flops: float, memory: dict[str, int]) -> float:
    """Products at what they reach at the model's width, and what passes through memory."""
    reached = device.peak(config.parallel.precision) * device.efficiency * width / (width + HALF_WIDTH)
    optimizer = memory["master_weights"] * 8 + memory["gradients"]
    moved = PASSES_OF_ACTIVATIONS * memory["activations"] * config.training.accumulation + optimizer
    return flops / reached + moved / device.memory_rate


def show_replicated(result: dict[str, Any]) -> None:
    """The plan for people."""
    counts, sizes = result["parameters"], result["bytes"]
    print_table(
        "memory of a rank", ("what", "MiB"), [(name.replace("_", " "), size / 2**20) for name, size in sizes.items()]
    )
    people.print(
        f"{counts['trained']:,} trained parameters, {100 * counts['share']:.3f} % of {counts['frozen']:,} frozen ones"
        if counts["frozen"]
        else f"{counts['trained']:,} trained parameters, none frozen"
    )
    people.print(f"{result['flops'] / 1e12:.3g} TFLOP and about {1000 * result['step_s']:.3g} ms a step")
    room = f"{sizes['total'] / 2**30:.3g} of {result['capacity_bytes'] / 2**30:.3g} GiB"
    place = f"{result['gpus']} x {result['gpu']}"
    if result["fits"]:
        people.print(f"fits on {place}: {room}")
    else:
        people.print(f"does not fit on {place} ({room}): raise training.accumulation or --gpus")
    people.print(f"modelled, not counted: {', '.join(result['modelled'])}; data: {result['data']}")
