"""Bytes, arithmetic, traffic and time of one training step, computed from a recipe and a schema without running it.

Exact: bytes of parameters, master weights and moments (from the model's own shapes and the sharding's own padding).
Counted: FLOPs, from expected numbers of tokens (`trainer.models.flops`). Modelled, and named so in the result: how
many tokens there are (presence of modalities taken as independent), activations, buffers, traffic, time.

Shape legend: M modalities, T bins.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from data_shards import DatasetSchema
from data_shards.records.statistics import SplitStatistics
from launch.plan.constants import GROUPED_SHARE, HALF_WIDTH, PASSES_OF_ACTIVATIONS, RESERVE, padded_group
from parallel import LocalDispatcher, MeshSpec, MoEConfig
from trainer.config.run_config import RunConfig
from trainer.models.flops import FORWARD_AND_BACKWARD, FlopCounter, is_expert, parameter_counts
from trainer.models.fusemoe.activations import activation_elements, expected_features
from trainer.models.fusemoe.job_type import FuseMoEJob
from trainer.models.fusemoe.model import FuseMoE, resolve_attention
from trainer.models.job_type import exempt_from_decay
from trainer.worker.devices import Device

BUCKET = 50_000_000  # elements of a reduction bucket (parallel.engine.deepspeed_config)

# Seconds to start a kernel on an accelerator, and kernels of one fusion block in one direction; fitted like the others.
LAUNCH_S, LAUNCHES_OF_BLOCK = 6e-6, 90

MODELLED = ("tokens", "activations", "buffers", "traffic", "step_s", "mfu")


@dataclass(frozen=True)
class Layout:
    """What can be chosen without changing the result of training."""

    world: int
    expert_parallel: int
    zero_stage: int
    accumulation: int
    activation_checkpointing: bool


@dataclass(frozen=True)
class StepCost:
    """One layout's cost. Bytes are of the fullest rank, FLOPs and tokens of the whole step, traffic is sent by a rank.

    `traffic` by kind: all_to_all, dense_reduce, dense_gather, expert_reduce, expert_gather; `seconds` by what they go
    for: compute, memory (bound by it), launches, all_to_all, reduce, optimizer.
    """

    layout: Layout
    bytes: dict[str, int]
    flops: float
    tokens: float
    traffic: dict[str, int]
    links: dict[str, str]
    seconds: dict[str, float]
    mfu: float
    capacity: float

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes.values())

    @property
    def step_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.capacity

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            **asdict(self.layout),
            "bytes": {**self.bytes, "total": self.total_bytes},
            "capacity_bytes": int(self.capacity),
            "flops": self.flops,
            "tokens": self.tokens,
            "traffic_bytes": self.traffic,
            "links": self.links,
            "seconds": self.seconds,
            "step_s": self.step_s,
            "mfu": self.mfu,
            "fits": self.fits,
        }


class _Place(LocalDispatcher):
    """Stands for the first rank of an expert-parallel group of this size; carries nothing."""

    def __init__(self, size: int) -> None:
        self.size = size  # type: ignore[misc]


class CostModel:
    """Costs of one recipe on one kind of device.

    Args:
        config: the recipe. schema, statistics: of the data; only shapes, presence and lengths are used.
        device: what it is to run on.
    """

    def __init__(self, config: RunConfig, schema: DatasetSchema, statistics: SplitStatistics, device: Device) -> None:
        self.config, self.schema, self.statistics, self.device = config, schema, statistics, device
        names = config.training.tasks or list(schema.task_names)
        attention = resolve_attention(config.model, len(schema.modalities))
        self.tasks = names
        self.counter = FlopCounter(schema, {name: schema.task(name).dim for name in names}, config.model, attention)
        self.features = expected_features(self.counter, statistics, config.training.batch_size)
        self._shapes: dict[int, dict[str, torch.Size]] = {}

    def shapes(self, expert_parallel: int) -> dict[str, torch.Size]:
        """Shapes of a rank's parameters, from the model itself built without memory."""
        if expert_parallel not in self._shapes:
            with torch.device("meta"):
                model = FuseMoE(self.schema, self.tasks, self.statistics, self.config.model, _Place(expert_parallel), 0)
            self._shapes[expert_parallel] = {name: p.shape for name, p in model.named_parameters()}
        return self._shapes[expert_parallel]

    def parameters(self) -> dict[str, int]:
        """Parameters of the whole model: total, experts, active."""
        shapes = {name: tuple(shape) for name, shape in self.shapes(1).items()}
        return parameter_counts(shapes, self.config.model.moe.top_k)

    def cost(self, layout: Layout) -> StepCost:
        """The step under this layout. Raises ValueError if its degrees do not divide."""
        moe = self.config.model.moe
        MeshSpec(layout.world, layout.expert_parallel, moe.experts, moe.top_k).validate()
        values = dict(zip(self.counter.features, self.features, strict=True))
        tokens = self.counter.count_tokens(values)
        memory = self._bytes(layout, tokens)
        traffic, links = self._traffic(layout, tokens)
        flops = self.counter.step_flops(self.features)
        seconds = self._seconds(layout, tokens, memory, traffic, links)
        peak = self.device.peak(self.config.parallel.precision) * layout.world
        mfu = flops / peak / sum(seconds.values())
        capacity = self.device.memory * (1 - RESERVE)
        return StepCost(layout, memory, flops, tokens, traffic, links, seconds, mfu, capacity)

    @property
    def width(self) -> int:
        """Bytes of a weight or an activation."""
        return 2 if self.config.parallel.precision == "bf16" else 4

    def groups(self, layout: Layout) -> dict[tuple[bool, bool], int]:
        """Elements of each optimizer group (expert?, decayed?) on a rank, without padding."""
        sizes: dict[tuple[bool, bool], int] = {}
        for name, shape in self.shapes(layout.expert_parallel).items():
            key = (is_expert(name), not exempt_from_decay(FuseMoEJob.no_decay, name, torch.empty(shape, device="meta")))  # type: ignore[arg-type]
            sizes[key] = sizes.get(key, 0) + shape.numel()
        return sizes

    def _bytes(self, layout: Layout, tokens: float) -> dict[str, int]:
        replicated = expert = shard = 0
        for (is_experts, _), size in self.groups(layout).items():
            sharers = layout.world // layout.expert_parallel if is_experts else layout.world
            padded = padded_group(size, sharers)
            shard += padded // sharers
            if is_experts:
                expert += padded
            else:
                replicated += padded
        whole = replicated + expert
        bucket = min(BUCKET, whole)
        return {
            "replicated_parameters": replicated * self.width,
            "expert_parameters": expert * self.width,
            "master_weights": shard * 4,
            "moments": shard * 8,
            "gradients": (shard if layout.zero_stage == 2 else whole) * 4,
            "activations": int(self._activations(layout, tokens)),
            "buffers": bucket * 4 + 2 * bucket * self.width,
        }

    def _activations(self, layout: Layout, tokens: float) -> float:
        """Bytes kept for the backward pass of one micro-batch; see `activation_elements`."""
        share = 1 / (layout.world * layout.accumulation)
        block, outside = activation_elements(self.counter, self.features)
        layers = self.config.model.layers
        kept = tokens * self.config.model.dim * layers + block if layout.activation_checkpointing else block * layers
        return (kept + outside) * share * self.width

    def _traffic(self, layout: Layout, tokens: float) -> tuple[dict[str, int], dict[str, str]]:
        """Bytes that a rank sends in a step, by kind, and the slowest link they cross."""
        world, ep = layout.world, layout.expert_parallel
        copies, moe = world // ep, self.config.model.moe
        rows = tokens / world * ranks_of_a_token(moe, ep) * self.config.model.layers
        # A token goes once to each rank that serves it, and one row comes back, forward and backward; recomputation
        # repeats the forward pair.
        passes = 6 if layout.activation_checkpointing else 4
        sizes = self.groups(layout)
        dense = sum(size for (expert, _), size in sizes.items() if not expert)
        expert = sum(size for (is_experts, _), size in sizes.items() if is_experts)
        reductions = layout.accumulation if layout.zero_stage == 2 else 1
        traffic = {
            "all_to_all": passes * rows * self.config.model.dim * self.width * (ep - 1) / ep,
            "dense_reduce": reductions * dense * 4 * (world - 1) / world,
            "dense_gather": dense * self.width * (world - 1) / world,
            "expert_reduce": reductions * expert * 4 * (copies - 1) / copies,
            "expert_gather": expert * self.width * (copies - 1) / copies,
        }
        host = self.device.per_host
        near = {"all_to_all": ep <= host, "dense": world <= host, "expert": world <= host or copies == 1}
        links = {
            kind: "link" if near[kind.split("_")[0] if kind != "all_to_all" else kind] else "network"
            for kind in traffic
        }
        return {kind: int(value) for kind, value in traffic.items()}, links

    def _seconds(
        self, layout: Layout, tokens: float, memory: dict[str, int], traffic: dict[str, int], links: dict[str, str]
    ) -> dict[str, float]:
        config, device = self.config, self.device
        micro, dim = layout.accumulation, config.model.dim
        reached = device.peak(config.parallel.precision) * device.efficiency * dim / (dim + HALF_WIDTH)
        passes = FORWARD_AND_BACKWARD + (1 if layout.activation_checkpointing else 0)
        parts = self.counter.forward_flops(self.features)
        expert_flops = passes * parts["experts"] / layout.world
        dense_flops = passes * (sum(parts.values()) - parts["experts"]) / layout.world
        # Expert weights are read forward and backward and their gradient is written, once a micro-batch.
        weights = FORWARD_AND_BACKWARD * memory["expert_parameters"] * micro / device.memory_rate
        experts = max(expert_flops / (reached * GROUPED_SHARE), weights)
        rate = {"link": device.link, "network": device.network}
        shard = memory["master_weights"] // 4
        reduce = sum(traffic[kind] / rate[links[kind]] for kind in traffic if kind != "all_to_all")
        return {
            "compute": dense_flops / reached + experts,
            "memory": PASSES_OF_ACTIVATIONS * memory["activations"] * micro / device.memory_rate,
            "launches": LAUNCH_S * LAUNCHES_OF_BLOCK * (config.model.layers + 2) * passes * micro,
            "all_to_all": traffic["all_to_all"] / rate[links["all_to_all"]],
            "reduce": reduce,
            "optimizer": (shard * 32 + memory["gradients"]) / device.memory_rate,
        }


def ranks_of_a_token(moe: MoEConfig, ranks: int) -> float:
    """Expected number of expert-parallel ranks that serve a token, if its experts are any top_k of those in reach."""
    groups = moe.expert_groups if moe.groups_per_token is not None else 1
    share = (moe.groups_per_token or 1) / groups
    reach = max(1.0, ranks * share)
    experts = moe.experts * share
    others = experts - experts / reach
    missed = math.prod(max(0.0, others - i) / max(1.0, experts - i) for i in range(moe.top_k))
    return reach * (1 - missed)
