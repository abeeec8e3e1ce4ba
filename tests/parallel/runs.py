"""A small two-layer MoE model, its data, and the same training written twice: with the engine, and in plain torch.

The plain version is one process, the whole batch, `torch.optim.AdamW`, `clip_grad_norm_` and the loop over experts.
Loss = mean squared error over all tokens of the global batch + balance losses of the global batch.

Shapes: S samples, T tokens a sample, N = tokens of this rank, D width, C outputs, M modalities.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from parallel import Engine, MoEConfig, MoELayer, ParallelConfig, balance_losses, create_mesh, reduce_stats
from parallel.moe.balance import RoutingStats
from parallel.moe.dispatch import Dispatcher
from parallel.moe.experts import Experts, reference_experts
from parallel.moe.initial import generator_for
from parallel.moe.rows.places import RowGroups

DIM, HIDDEN, OUT, MODALITIES, SAMPLES, TOKENS = 16, 24, 3, 2, 8, 5


@dataclass(frozen=True)
class Case:
    """One training: how it is run, and on what."""

    expert_parallel: int = 1
    zero_stage: int = 1
    gate: str = "laplace"
    router: str = "joint"
    granularity: str = "token"
    precision: str = "fp32"
    accumulation: int = 1
    clip: float = 0.5
    steps: int = 10
    experts: int = 4
    top_k: int = 2
    recompute: bool = False
    layers: int = 2
    staged: bool = True  # the model tells its stages; else it is reduced as one
    data: str = "plain"  # plain | modality_missing | rank_empty | starved_expert

    def __str__(self) -> str:
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        words = [f"ep{self.expert_parallel}", f"zero{self.zero_stage}"]
        words += [f"{k}={v}" for k, v in changed.items() if k not in ("expert_parallel", "zero_stage", "steps")]
        return "-".join(words)

    @property
    def moe(self) -> MoEConfig:
        return MoEConfig(
            experts=self.experts,
            top_k=self.top_k,
            hidden=HIDDEN,
            gate=self.gate,
            router=self.router,
            granularity=self.granularity,
            balance=0.1,
            entropy=0.1,
            z=0.01,
            shared_expert_hidden=8,
        )


class Net(nn.Module):
    """An encoder per modality, MoE layers with residuals, a head."""

    def __init__(self, case: Case, dispatcher: Dispatcher | None = None, seed: int = 3) -> None:
        super().__init__()
        self.config, self.recompute, self.staged = case.moe, case.recompute, case.staged
        self.encoders = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(MODALITIES))
        self.layers = nn.ModuleList(
            MoELayer(DIM, self.config, MODALITIES, i, seed, dispatcher) for i in range(case.layers)
        )
        self.head = nn.Linear(DIM, OUT)
        for index, linear in enumerate([*self.encoders, self.head]):
            generator = generator_for(seed, "linear", index)
            nn.init.normal_(linear.weight, std=0.3, generator=generator)
            nn.init.normal_(linear.bias, std=0.1, generator=generator)
        if case.data == "starved_expert":
            with torch.no_grad():
                for layer in self.layers:
                    layer.router.gate.prototypes[:, :, 1] = 50.0  # as far from every token as it gets

    def stages(self) -> list[list[nn.Module]]:
        return [*([layer] for layer in self.layers), [self.head]] if self.staged else []

    def forward(self, batch: Batch) -> tuple[Tensor, list[RoutingStats]]:
        order = [torch.nonzero(batch.modality_N == m)[:, 0] for m in range(MODALITIES)]
        # As in the product, an encoder whose modality is absent is not called: its parameters get no gradient at all.
        parts = [self.encoders[m](batch.x_ND[order[m]]) for m in range(MODALITIES) if len(order[m])]
        index_N = torch.cat(order)
        x_ND = torch.cat(parts) if parts else batch.x_ND
        modality_N, unit_N = batch.modality_N[index_N], None
        if self.config.granularity == "sample":
            unit_N = batch.sample_N[index_N]
        stats = []
        for layer in self.layers:
            arguments = (x_ND, modality_N, unit_N, batch.samples)
            if self.recompute:
                y_ND, layer_stats = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                y_ND, layer_stats = layer(*arguments)
            x_ND, stats = x_ND + y_ND, [*stats, layer_stats]
        y_NC = self.head(x_ND)
        return torch.empty_like(y_NC).index_copy(0, index_N, y_NC), stats


@dataclass
class Batch:
    x_ND: Tensor
    y_NC: Tensor
    modality_N: Tensor
    sample_N: Tensor
    samples: int


def batch_of(case: Case, step: int, micro: int, rank: int, world: int) -> Batch:
    """Samples `rank` takes of one micro-batch; rank 0 of world 1 takes all."""
    generator = generator_for("data", step, micro)
    x_STD = torch.randn(SAMPLES, TOKENS, DIM, generator=generator)
    y_STC = torch.randn(SAMPLES, TOKENS, OUT, generator=generator)
    modality_ST = torch.randint(0, MODALITIES, (SAMPLES, TOKENS), generator=generator)
    keep_S = torch.ones(SAMPLES, dtype=torch.bool)
    if case.data == "modality_missing":
        modality_ST[: SAMPLES // 2] = 0  # at world > 1 the first rank has no token of modality 1
    if case.data == "rank_empty":
        keep_S[SAMPLES // 4 :] = False  # only the first ranks have samples
    mine_S = torch.zeros(SAMPLES, dtype=torch.bool)
    mine_S[rank * SAMPLES // world : (rank + 1) * SAMPLES // world] = True
    samples_S = torch.nonzero(mine_S & keep_S)[:, 0]
    sample_N = torch.arange(len(samples_S)).repeat_interleave(TOKENS)
    return Batch(
        x_STD[samples_S].reshape(-1, DIM),
        y_STC[samples_S].reshape(-1, OUT),
        modality_ST[samples_S].reshape(-1),
        sample_N,
        len(samples_S),
    )


def total_tokens(case: Case) -> int:
    return (SAMPLES // 4 if case.data == "rank_empty" else SAMPLES) * TOKENS


def losses_of(net: Net, case: Case, y_NC: Tensor, batch: Batch, stats: list[RoutingStats]) -> tuple[Tensor, Tensor]:
    """(this rank's share of the data loss, the balance loss of the whole batch)."""
    data = (y_NC.float() - batch.y_NC).square().sum() / (total_tokens(case) * OUT)
    parts = balance_losses(stats, net.config)
    return data, sum((parts[name] * getattr(net.config, name) for name in parts), torch.zeros(()))


def one_after_the_other(self: Experts, x_RD: Tensor, groups: RowGroups | None = None) -> Tensor:
    own = groups or RowGroups.of(torch.tensor([len(x_RD)]), len(x_RD))
    return reference_experts(x_RD, own, self.w1, self.w2, self.w3)


def train_reference(case: Case) -> dict[str, np.ndarray]:
    """One process, plain torch, experts in a loop."""
    net = Net(case)
    original = Experts.forward
    Experts.forward = one_after_the_other  # type: ignore[method-assign]
    try:
        return _train_reference(net, case)
    finally:
        Experts.forward = original  # type: ignore[method-assign]


def _train_reference(net: Net, case: Case) -> dict[str, np.ndarray]:
    decayed = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=1e-2
    )
    losses, norms, gradients = [], [], {}
    for step in range(case.steps):
        optimizer.zero_grad()
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)  # an unused parameter still decays, as under ZeRO
        total = 0.0
        for micro in range(case.accumulation):
            batch = batch_of(case, step, micro, 0, 1)
            y_NC, stats = net(batch)
            data, balance = losses_of(net, case, y_NC, batch, stats)
            loss = (data + balance) / case.accumulation
            loss.backward()
            total += float(loss.detach())
        if step == 0:
            gradients = {f"gradient/{name}": p.grad.clone().numpy() for name, p in net.named_parameters()}
        norms.append(float(nn.utils.clip_grad_norm_(net.parameters(), case.clip)))
        optimizer.step()
        losses.append(total)
    weights = {f"weight/{name}": p.detach().clone().numpy() for name, p in net.named_parameters()}
    return {"losses": np.array(losses), "norms": np.array(norms), **gradients, **weights}


def make_engine(rank: int, world: int, case: Case, seed: int = 3, ema: float = 0.0) -> Engine:
    parallel = ParallelConfig(workers=world, expert_parallel=case.expert_parallel, zero_stage=case.zero_stage)
    mesh = create_mesh(parallel, case.moe)
    return Engine(
        Net(case, mesh.dispatcher(), seed),
        mesh,
        lr=1e-2,
        weight_decay=0.1,
        no_decay=lambda name, parameter: parameter.ndim <= 1,
        zero_stage=case.zero_stage,
        precision=case.precision,
        clip=case.clip,
        accumulation=case.accumulation,
        ema=ema,
    )


def train_steps(
    engine: Engine, case: Case, rank: int, world: int, first: int, last: int
) -> tuple[list[float], list[float]]:
    """Global loss and gradient norm of steps [first, last)."""
    losses, norms = [], []
    for step in range(first, last):
        total = torch.zeros(())
        for micro in range(case.accumulation):
            batch = batch_of(case, step, micro, rank, world)
            dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
            batch.x_ND = batch.x_ND.to(dtype)
            y_NC, stats = engine(batch)
            data, balance = losses_of(engine.module, case, y_NC, batch, reduce_stats(stats))
            engine.backward((data + balance) * world if len(batch.x_ND) else balance * world)
            total += (data + balance / world).detach() / case.accumulation
        assert engine.step()
        torch.distributed.all_reduce(total)
        losses.append(float(total))
        norms.append(engine.grad_norm())
    return losses, norms
