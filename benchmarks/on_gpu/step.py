"""A whole training step of a model of a billion parameters, half of the modalities present in every record.

Forward, loss with the balance term, backward, clipping, AdamW on fp32 masters. `deepspeed` is the engine that training
uses, alone in the world; `plain` is the same passes with an AdamW of this file, for a machine without DeepSpeed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from benchmarks.common import plain_statistics, presence, random_batch, series_schema
from benchmarks.on_gpu.clock import Taken, free, timed
from data_shards import Batch
from parallel import (
    Engine,
    LocalDispatcher,
    MoEConfig,
    MoELayer,
    ParallelConfig,
    balance_losses,
    create_mesh,
    init_distributed,
)
from parallel.moe.routers import Router
from trainer.config.sections import ModelConfig, SeriesEncoderConfig
from trainer.models.flops import FlopCounter
from trainer.models.fusemoe.job_type import FuseMoEJob
from trainer.models.fusemoe.model import FuseMoE
from trainer.models.job_type import exempt_from_decay

ENGINES = ("deepspeed", "plain")
TARGET = 0.3  # of the maker's peak, at width 2048 on one H100
LR, CLIP, DECAY = 1e-4, 1.0, 0.01


@dataclass(frozen=True)
class Size:
    """Of the model and its batch; half of the modalities are present in each record."""

    dim: int
    layers: int
    experts: int
    hidden: int
    records: int
    modalities: int = 8
    bins: int = 16


BILLION = Size(dim=2048, layers=4, experts=16, hidden=4096, records=512)
SMALL = Size(dim=64, layers=2, experts=4, hidden=64, records=8)


@dataclass
class StepCase:
    """A step with natural or dealt routing, with or without recomputation."""

    size: Size
    parameters: int
    tokens: int
    flops: float
    dealt: bool
    recompute: bool
    taken: Taken | None = None
    failed: str = ""

    @property
    def name(self) -> str:
        return f"{'dealt' if self.dealt else 'natural'}{', recomputed' if self.recompute else ''}"


class Trains(Protocol):
    """What a step needs of an engine."""

    def __call__(self, batch: Batch) -> object: ...

    def backward(self, loss: Tensor) -> None: ...

    def step(self) -> object: ...

    def close(self) -> None: ...


class PlainEngine:
    """Weights in bf16, AdamW and clipping on fp32 masters; one rank."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.to(torch.bfloat16)
        self.weights = list(model.parameters())
        self.masters = [weight.detach().float() for weight in self.weights]
        self.optimizer = torch.optim.AdamW(self.masters, lr=LR, weight_decay=DECAY, fused=True)

    def __call__(self, batch: Batch) -> object:
        return self.model(batch)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        for master, weight in zip(self.masters, self.weights, strict=True):
            master.grad = torch.zeros_like(master) if weight.grad is None else weight.grad.float()
            weight.grad = None
        nn.utils.clip_grad_norm_(self.masters, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_copy_([weight.detach() for weight in self.weights], self.masters)

    def close(self) -> None:
        """Nothing outlives it."""


def step_cases(device: torch.device, size: Size, engine: str, rounds: int, deadline: float) -> Iterator[StepCase]:
    """The four cases, on one model; none begins after the deadline (monotonic clock).

    Raises:
        ModuleNotFoundError: the engine deepspeed was asked for, and is not installed.
    """
    model, batch, tokens, flops = built(device, size, engine)
    moe = model.config.moe
    trains = _engine(model, moe, device, engine)
    parameters = sum(weight.numel() for weight in model.parameters())
    for dealt in (False, True):
        deal(model, dealt)
        for recompute in (False, True):
            model.recompute = recompute
            case = StepCase(size, parameters, tokens, flops, dealt, recompute)
            try:
                case.failed = "no time" if time.monotonic() > deadline else ""
                if not case.failed:
                    case.taken = timed(device, partial(one_step, trains, batch, moe), rounds)
            except torch.OutOfMemoryError:
                case.failed = "out of memory"
            free(device)
            yield case
    trains.close()


def one_step(engine: Trains, batch: Batch, moe: MoEConfig) -> None:
    """Forward, backward and update; the loss is the tasks' and the balance term, as in training."""
    output = engine(batch)
    loss = sum(logits.float().square().mean() for logits in output.logits.values())  # type: ignore[attr-defined]
    terms = balance_losses(output.routing, moe)  # type: ignore[attr-defined]
    engine.backward(loss + moe.balance * terms["balance"])
    engine.step()


def built(device: torch.device, size: Size, engine: str) -> tuple[FuseMoE, Batch, int, float]:
    """The model on the device, a batch, its tokens, and the FLOPs of forward and backward (active parameters only)."""
    moe = MoEConfig(experts=size.experts, top_k=2, hidden=size.hidden)
    series = SeriesEncoderConfig(irregularity="imputation")
    config = ModelConfig(
        dim=size.dim,
        layers=size.layers,
        heads=max(1, size.dim // 128),
        bins=size.bins,
        attention="factorized",
        moe=moe,
        series=series,
    )
    schema = series_schema(size.modalities)
    dispatcher = LocalDispatcher()
    if engine == "deepspeed":
        init_distributed(device)
        dispatcher = create_mesh(ParallelConfig(), moe, device).dispatcher()  # type: ignore[assignment]
    torch.manual_seed(0)
    model = FuseMoE(schema, list(schema.task_names), plain_statistics(schema), config, dispatcher, 0).to(device)
    batch = random_batch(schema, presence(size.records, size.modalities, size.modalities // 2)).to(device)
    counter = FlopCounter(schema, {task.name: task.dim for task in schema.tasks}, config, model.attention)
    features_X = counter.measure(batch)
    tokens = counter.count_tokens(dict(zip(counter.features, features_X.tolist(), strict=True)))
    return model, batch, int(tokens), counter.step_flops(features_X)


def _engine(model: FuseMoE, moe: MoEConfig, device: torch.device, engine: str) -> Trains:
    if engine == "plain":
        return PlainEngine(model)
    mesh = create_mesh(ParallelConfig(), moe, device)
    no_decay = partial(exempt_from_decay, FuseMoEJob.no_decay)
    made = Engine(model, mesh, lr=LR, weight_decay=DECAY, no_decay=no_decay, clip=CLIP, precision="bf16")
    made.train()
    return made


def deal(model: nn.Module, dealt: bool) -> None:
    """Whether the routers of a model deal decisions to experts in turn, or choose them."""
    for module in model.modules():
        if isinstance(module, (Router, MoELayer)):
            module.config = module.config.model_copy(update={"forced_balance": dealt})
