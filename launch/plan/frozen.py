"""What a job with a frozen backbone costs: how much of it is trained, what that occupies, how long a step is.

The model itself is built without memory, from configurations alone, so weights need not be there. Parameters and the
bytes of weights, master weights and moments are exact; activations, FLOPs and time are modelled.

Shapes: N tokens, D width of a layer, F width inside of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from data_shards import DatasetSchema
from data_shards.records.statistics import SplitStatistics
from launch.errors import UsageError
from launch.output.tables import people, print_table
from launch.plan.activations import (
    HALF_WIDTH,
    PASSES_OF_ACTIVATIONS,
    RESERVE,
    activation_elements,
    expected_features,
    padded_group,
)
from parallel import LocalDispatcher, MeshSpec
from trainer.config.run_config import RunConfig
from trainer.models.build import build_model, exempt_from_decay, flop_counter, resolve
from trainer.models.flops import FlopCounter, is_expert
from trainer.models.mope.host.model import PromptedFuseMoE
from trainer.models.mope.towers.flops import passes, site_tokens
from trainer.models.mope.towers.model import TowerModel
from trainer.models.mope.towers.segmentation import PromptedSegmenter
from trainer.worker.devices import Device

MODELLED = ("activations", "flops", "step_s")


def plan_frozen(
    config: RunConfig, schema: DatasetSchema, statistics: SplitStatistics, device: Device, gpus: int
) -> dict[str, Any]:
    """The plan as plain data.

    Raises:
        BackboneError: no configuration of a tower, no host, or data that they do not fit.
        UsageError: fewer than one device. ValueError: parallel degrees that do not divide.
    """
    if gpus < 1:
        raise UsageError(f"--gpus {gpus} must be at least 1")
    config = resolve(config)
    MeshSpec(gpus, config.parallel.expert_parallel, config.model.moe.experts, config.model.moe.top_k).validate()
    names = config.training.tasks or list(schema.task_names)
    with torch.device("meta"):
        model = build_model(config, schema, names, statistics, LocalDispatcher(), weights=False)
    records = config.training.batch_size / gpus / config.training.accumulation
    memory = _bytes(config, model, gpus) | {
        "activations": int(records * activations_of_record(model, schema, statistics) * _width(config))
    }
    flops = _flops(config, schema, statistics, model) * config.training.batch_size
    capacity = device.memory * (1 - RESERVE)
    share = model.parameter_share()  # type: ignore[operator]
    return {
        "gpus": gpus,
        "parameters": {"trained": int(share["trained"]), "frozen": int(share["frozen"]), "share": share["share"]},
        "bytes": memory | {"total": sum(memory.values())},
        "capacity_bytes": int(capacity),
        "flops": flops,
        "step_s": _seconds(config, model, device, flops / gpus, memory),
        "records_per_micro_batch": records,
        "fits": sum(memory.values()) <= capacity,
        "modelled": list(MODELLED),
    }


def _width(config: RunConfig) -> int:
    return 2 if config.parallel.precision == "bf16" else 4


def _bytes(config: RunConfig, model: nn.Module, gpus: int) -> dict[str, int]:
    """Of one rank; what is frozen is on every rank, but for experts, which are spread as in training."""
    degree = config.parallel.expert_parallel
    frozen = 0
    trained: dict[tuple[bool, bool], int] = {}
    for name, parameter in model.named_parameters():
        size = parameter.numel() // (degree if is_expert(name) else 1)
        decayed = not exempt_from_decay(config.model_job, name, parameter)  # type: ignore[arg-type]
        key = (is_expert(name), decayed)
        if parameter.requires_grad:
            trained[key] = trained.get(key, 0) + size
        else:
            frozen += size
    sharers = {key: gpus // degree if key[0] else gpus for key in trained}
    whole = {key: padded_group(size, sharers[key]) for key, size in trained.items()}
    shard, padded = sum(size // sharers[key] for key, size in whole.items()), sum(whole.values())
    return {
        "frozen_parameters": frozen * _width(config),
        "trained_parameters": padded * _width(config),
        "master_weights": shard * 4,
        "moments": shard * 8,
        "gradients": (shard if config.parallel.zero_stage == 2 else padded) * 4,
    }


def _flops(config: RunConfig, schema: DatasetSchema, statistics: SplitStatistics, model: nn.Module) -> float:
    """Of one record, forward and backward."""
    names = config.training.tasks or list(schema.task_names)
    counter = flop_counter(config, schema, [schema.task(name) for name in names], model)
    if isinstance(counter, FlopCounter):
        return counter.step_flops(expected_features(counter, statistics, 1))
    return counter.step_flops(torch.ones(1))


def _seconds(config: RunConfig, model: nn.Module, device: Device, flops: float, memory: dict[str, int]) -> float:
    """Products at what they reach at the model's width, and what passes through memory."""
    if isinstance(model, PromptedFuseMoE):
        width = model.architecture.dim
    else:
        assert isinstance(model, TowerModel)
        width = max(site.width for what in model.towers for site in model.tower(what).sites)
    reached = device.peak(config.parallel.precision) * device.efficiency * width / (width + HALF_WIDTH)
    optimizer = memory["master_weights"] * 8 + memory["gradients"]
    moved = PASSES_OF_ACTIVATIONS * memory["activations"] * config.training.accumulation + optimizer
    return flops / reached + moved / device.memory_rate


def activations_of_record(model: nn.Module, schema: DatasetSchema, statistics: SplitStatistics) -> float:
    """Elements that one record keeps for the backward pass."""
    if isinstance(model, TowerModel):
        return sum(_tower_elements(model, what) for what in model.towers) + _mask_elements(model)
    assert isinstance(model, PromptedFuseMoE)
    if not (model.trained or model.config.prompts or model.config.method == "lora"):
        return 0.0  # nothing below the head is asked for a gradient
    counter = FlopCounter(schema, {}, model.architecture, model.backbone.attention)
    features = expected_features(counter, statistics, 1)
    block, outside = activation_elements(counter, features)
    values = dict(zip(counter.features, features, strict=True))
    # A token reads keys and values of its own pair, which are kept for each token.
    read = counter.count_tokens(values) * 2 * model.config.rows * model.architecture.dim
    layers = model.architecture.layers
    return (block + read) * layers + (outside if model.trained else 0.0)


def _tower_elements(model: TowerModel, what: str) -> float:
    """A frozen layer keeps what its norms, its attention and its activation need; a trained one inputs of products too.

    Without prompts a frozen tower keeps nothing.
    """
    tower, total = model.tower(what), 0.0
    if passes(model, what) == 1:
        return total
    for site in tower.sites:
        tokens = site_tokens(model, what, site)
        inside = max(part.out_features for part in site.layer.modules() if isinstance(part, nn.Linear))
        each = 6 * site.width + inside
        if tower.trained:
            each += 3 * site.width + inside
        total += tokens * each
        if what in model.prompts:
            side: int = getattr(site.layer, "window_size", 0)  # type: ignore[assignment]
            windows = max(1.0, tokens / side**2) if side else 1.0
            total += (windows + 1) * 2 * site.width * model.config.rows
    return total


def _mask_elements(model: TowerModel) -> float:
    """Of a UperNet head: maps of all stages, convolutions with norm and activation on each, the loss at full size."""
    if not isinstance(model, PromptedSegmenter):
        return 0.0
    tower, hidden = model.tower("image"), model.config.mask.hidden  # type: ignore[union-attr]
    _, height, width = tower.picture_shape
    firsts = [site for site in tower.sites if site.index == 0]
    # A stage's map is taken after it was merged into the next one's cells; the last one's is not merged.
    cells = [site_tokens(model, "image", site) for site in [*firsts[1:], firsts[-1]]]
    each = sum(number * 8 * hidden for number in cells)
    return each + cells[0] * 2 * len(cells) * hidden + height * width * model.classes * 6


def show_frozen(result: dict[str, Any]) -> None:
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
