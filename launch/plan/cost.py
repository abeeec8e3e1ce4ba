"""Bytes, arithmetic, traffic and time of one training step, computed from a recipe and a schema without running it.

Exact: bytes of parameters, master weights and moments (from the model's own shapes and the sharding's own padding).
Counted: FLOPs, from expected numbers of tokens (`trainer.models.flops`). Modelled, and named so in the result: how
many tokens there are (presence of modalities taken as independent), activations, traffic, time.

Shape legend: M modalities, T bins.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from data_shards import DatasetSchema
from data_shards.records.statistics import SplitStatistics
from launch.plan.code_tables import TableSize, table_sizes
from launch.plan.constants import GROUPED_SHARE, HALF_WIDTH, PASSES_OF_ACTIVATIONS, RESERVE
from launch.plan.memory import Kept, StageSize, fullest_moment, stage_sizes
from launch.plan.overlap import exposed_seconds
from parallel import LocalDispatcher, MeshSpec, MoEConfig
from trainer.config.run_config import RunConfig
from trainer.models.encoders.own.pretrained import encoder_costs, frozen_bytes
from trainer.models.flops import FORWARD_AND_BACKWARD, FlopCounter, parameter_counts
from trainer.models.fusemoe.activations import activations, expected_features
from trainer.models.fusemoe.job_type import FuseMoEJob
from trainer.models.fusemoe.model import FuseMoE, resolve_attention
from trainer.models.gpu_limits import GpuLimits, batches_at_once, gpu_limits, refuse_many_rows
from trainer.worker.devices import Device

# Seconds to start a kernel on an accelerator, and kernels of one fusion block in one direction; fitted like the others.
LAUNCH_S, LAUNCHES_OF_BLOCK = 6e-6, 90

MODELLED = ("tokens", "activations", "traffic", "step_s", "mfu")


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

    `traffic` by kind: all_to_all, dense_reduce, dense_gather, expert_reduce, expert_gather, table_rows; `seconds` by
    what they go for: compute, memory (bound by it), launches, all_to_all, table_rows, reduce (as far as the backward
    pass does not hide it), gather, optimizer.
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


@dataclass(frozen=True)
class _RankModel:
    """One rank's model without memory: its parameters' shapes, its stages, and what a GPU's kernels say to it."""

    model: FuseMoE
    shapes: dict[str, torch.Size]
    stages: list[StageSize]
    tables: list[TableSize]
    limits: GpuLimits


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
        self._ranks: dict[int, _RankModel] = {}
        own = encoder_costs(self.rank(1).model) if config.model.encoders else {}
        logits = {name: schema.task(name).dim for name in names}
        self.counter = FlopCounter(schema, logits, config.model, attention, own)
        self.features = expected_features(self.counter, statistics, config.training.batch_size)

    def rank(self, expert_parallel: int) -> _RankModel:
        """What a rank's model is, from the model itself built without memory."""
        if expert_parallel not in self._ranks:
            with torch.device("meta"):
                place = _Place(expert_parallel)
                model = FuseMoE(self.schema, self.tasks, self.statistics, self.config.model, place, 0, weights=False)
            shapes = {name: p.shape for name, p in model.named_parameters()}
            stages = stage_sizes(model, FuseMoEJob.no_decay, partial(FuseMoEJob().learning_rate, self.config))
            self._ranks[expert_parallel] = _RankModel(model, shapes, stages, table_sizes(model), gpu_limits(model))
        return self._ranks[expert_parallel]

    def refuse(self, layout: Layout) -> None:
        """Raise ValueError for what a GPU's kernels cannot take under this layout."""
        if self.device.name == "cpu" or self.config.parallel.precision != "bf16":
            return
        rank, training = self.rank(layout.expert_parallel), self.config.training
        rank.limits.refuse()
        values = dict(zip(self.counter.features, self.features, strict=True))
        tokens = self.counter.count_tokens(values) / training.batch_size
        sizes = (training.batch_size, layout.accumulation, training.eval_batch_size)
        refuse_many_rows(rank.model, batches_at_once(tokens, layout.world, *sizes))

    def slow(self, layout: Layout) -> list[str]:
        """What a GPU's kernels take slowly."""
        grouped = self.device.name != "cpu" and self.config.parallel.precision == "bf16"
        return self.rank(layout.expert_parallel).limits.slow if grouped else []

    def parameters(self) -> dict[str, int]:
        """Parameters of the whole model: total, experts, active."""
        shapes = {name: tuple(shape) for name, shape in self.rank(1).shapes.items()}
        return parameter_counts(shapes, self.config.model.moe.top_k)

    def cost(self, layout: Layout) -> StepCost:
        """The step under this layout. Raises ValueError if its degrees do not divide."""
        moe = self.config.model.moe
        MeshSpec(layout.world, layout.expert_parallel, moe.experts, moe.top_k).validate()
        values = dict(zip(self.counter.features, self.features, strict=True))
        tokens = self.counter.count_tokens(values)
        memory = self._bytes(layout)
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

    def _bytes(self, layout: Layout) -> dict[str, int]:
        world, degree = layout.world, layout.expert_parallel
        stages, tables = self.rank(degree).stages, self.rank(degree).tables
        replicated, expert = (sum(stage.elements(world, degree, kind) for stage in stages) for kind in (False, True))
        shard = sum(own for stage in stages for _, own in stage.reductions(world, degree))
        sizes = (world, degree, self.width, layout.zero_stage, layout.accumulation)
        cpu = self.device.name == "cpu"
        rows = 4 * self._looked_up(layout) * max((table.dim for table in tables if table.trained), default=0)
        moment = fullest_moment(stages, self.kept(layout), *sizes, cpu=cpu, rows=rows)
        return {
            "replicated_parameters": replicated * self.width,
            "frozen_parameters": frozen_bytes(self.rank(degree).model),
            "expert_parameters": expert * self.width,
            "master_weights": shard * 4,
            "moments": shard * 8,
            **({"averaged_weights": shard * 4} if self.config.optim.ema else {}),
            "code_tables": sum(table.kept(world) for table in tables),
            "gradients": int(moment.gradients),
            "activations": int(moment.activations),
        }

    def _looked_up(self, layout: Layout) -> float:
        """Codes of a rank's micro-batch, at most: each may be another."""
        values = dict(zip(self.counter.features, self.features, strict=True))
        codes = sum(value for name, value in values.items() if name.startswith("codes/"))
        return codes / (layout.world * layout.accumulation)

    def kept(self, layout: Layout) -> Kept:
        """Activations of one micro-batch on a rank by stage: encoders, blocks, heads."""
        share = 1 / (layout.world * layout.accumulation)
        found = activations(self.counter, self.features, self.width, self.device.name == "cpu")
        again = layout.activation_checkpointing
        block = found.inputs if again else found.block
        working = found.block_working + (found.block - found.inputs if again else 0.0)
        layers = self.config.model.layers
        return Kept(
            [share * part for part in (found.encoders, *[block] * layers, found.heads)],
            [share * part for part in (found.encoders_working, *[working] * layers, found.heads_working)],
        )

    def _traffic(self, layout: Layout, tokens: float) -> tuple[dict[str, int], dict[str, str]]:
        """Bytes that a rank sends in a step, by kind, and the slowest link they cross."""
        world, ep = layout.world, layout.expert_parallel
        copies, moe = world // ep, self.config.model.moe
        rows = tokens / world * ranks_of_a_token(moe, ep) * self.config.model.layers
        # A token goes once to each rank that serves it, and one row comes back, forward and backward; recomputation
        # repeats the forward pair.
        passes = 6 if layout.activation_checkpointing else 4
        stages = self.rank(ep).stages
        dense, expert = (sum(stage.elements(world, ep, kind) for stage in stages) for kind in (False, True))
        reductions = layout.accumulation if layout.zero_stage == 2 else 1
        traffic = {
            "all_to_all": passes * rows * self.config.model.dim * self.width * (ep - 1) / ep,
            "dense_reduce": reductions * dense * 4 * (world - 1) / world,
            "dense_gather": dense * self.width * (world - 1) / world,
            "expert_reduce": reductions * expert * 4 * (copies - 1) / copies,
            "expert_gather": expert * self.width * (copies - 1) / copies,
            "table_rows": layout.accumulation * self._rows_sent(layout),
        }
        host = self.device.per_host
        near = {"all_to_all": ep <= host, "dense": world <= host, "expert": world <= host or copies == 1}
        near["table"] = world <= host
        links = {
            kind: "link" if near[kind.split("_")[0] if kind != "all_to_all" else kind] else "network"
            for kind in traffic
        }
        return {kind: int(value) for kind, value in traffic.items()}, links

    def _rows_sent(self, layout: Layout) -> float:
        """Bytes of a micro-batch. A table serves a group of modalities; which codes are whose is not known apart."""
        codes = self._looked_up(layout)
        tables = self.rank(layout.expert_parallel).tables
        return max((table.sent(codes, layout.world, self.width) for table in tables), default=0.0)

    def _seconds(
        self, layout: Layout, tokens: float, memory: dict[str, int], traffic: dict[str, int], links: dict[str, str]
    ) -> dict[str, float]:
        config, device = self.config, self.device
        micro, dim = layout.accumulation, config.model.dim
        reached = device.peak(config.parallel.precision) * device.efficiency * dim / (dim + HALF_WIDTH)
        passes = FORWARD_AND_BACKWARD + (1 if layout.activation_checkpointing else 0)
        parts = self.counter.forward_flops(self.features)
        expert_flops = passes * parts["experts"] / layout.world
        dense_flops = passes * (sum(parts.values()) - parts["experts"] - parts["pretrained"])
        dense_flops = (dense_flops + self.counter.pretrained_step(self.features)) / layout.world
        # Expert weights are read forward and backward and their gradient is written, once a micro-batch.
        weights = FORWARD_AND_BACKWARD * memory["expert_parameters"] * micro / device.memory_rate
        experts = max(expert_flops / (reached * GROUPED_SHARE), weights)
        rate = {"link": device.link, "network": device.network}
        shard = memory["master_weights"] // 4
        took = {kind: sent / rate[links[kind]] for kind, sent in traffic.items()}
        compute = dense_flops / reached + experts
        kept = sum(self.kept(layout).stages) if not layout.activation_checkpointing else self._all_kept(layout)
        moved = PASSES_OF_ACTIVATIONS * kept * micro / device.memory_rate
        # The backward pass is all but the first forward one; each stage takes its share of it.
        backward = (passes - 1) / passes * (compute + moved + took["all_to_all"]) / micro
        reduce = self._reduce(layout, backward, took)
        return {
            "compute": compute,
            "memory": moved,
            "launches": LAUNCH_S * LAUNCHES_OF_BLOCK * (config.model.layers + 2) * passes * micro,
            "all_to_all": took["all_to_all"],
            "table_rows": took["table_rows"],
            "reduce": reduce,
            "gather": took["dense_gather"] + took["expert_gather"],
            "optimizer": shard * 36 / device.memory_rate,
        }

    def _all_kept(self, layout: Layout) -> float:
        """Activations that pass through memory, whether they are kept or made again."""
        return sum(self.kept(replace(layout, activation_checkpointing=False)).stages)

    def _reduce(self, layout: Layout, backward: float, took: dict[str, float]) -> float:
        """Seconds that gradients travel beyond the backward passes of a step, where one takes `backward`."""
        stages, layers = self.rank(layout.expert_parallel).stages, self.config.model.layers
        times = [0.0, *[backward / layers] * layers, 0.0]
        passes = layout.accumulation if layout.zero_stage == 2 else 1
        sending = [0.0] * len(stages)
        for kind in (False, True):
            sizes = [stage.elements(layout.world, layout.expert_parallel, kind) for stage in stages]
            whole = took["expert_reduce" if kind else "dense_reduce"] / passes
            # Side by side, but on the same wires.
            sending = [s + whole * size / max(1, sum(sizes)) for s, size in zip(sending, sizes, strict=True)]
        return passes * exposed_seconds(times, sending)


def ranks_of_a_token(moe: MoEConfig, ranks: int) -> float:
    """Expected number of expert-parallel ranks that serve a token, if its experts are any top_k of those in reach."""
    groups = moe.expert_groups if moe.groups_per_token is not None else 1
    share = (moe.groups_per_token or 1) / groups
    reach = max(1.0, ranks * share)
    experts = moe.experts * share
    others = experts - experts / reach
    missed = math.prod(max(0.0, others - i) / max(1.0, experts - i) for i in range(moe.top_k))
    return reach * (1 - missed)
