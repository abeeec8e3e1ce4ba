"""A small model that looks codes up, and its training: with the engine on any number of ranks, and in plain torch.

The plain one has a table that is whole, one process, all codes of a step, `torch.optim.AdamW` over every row and
`clip_grad_norm_`. Codes are uneven: a few are in every step, most in few, some in none.

Shapes: O codes of a rank's micro-batch, U distinct ones, D width, R rows of the table.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from parallel import CodeTable, Engine, MoEConfig, MoELayer, ParallelConfig, balance_losses, create_mesh, reduce_stats
from parallel.moe.balance import RoutingStats
from parallel.moe.dispatch import Dispatcher
from parallel.moe.initial import generator_for

ROWS, DIM, CODES, LR, DECAY, BETAS = 41, 8, 24, 2e-2, 0.1, (0.9, 0.99)


@dataclass(frozen=True)
class Case:
    """One training."""

    expert_parallel: int = 1
    zero_stage: int = 1
    precision: str = "fp32"
    accumulation: int = 1
    clip: float = 0.3
    spread_above: int = 0
    rows: int = ROWS
    data: str = "plain"  # plain | rank_empty: only rank 0 has codes | none: nobody has any in every second step
    frozen: bool = False

    def __str__(self) -> str:
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return "-".join(f"{key}={value}" for key, value in changed.items()) or "plain"

    @property
    def moe(self) -> MoEConfig:
        return MoEConfig(experts=4, top_k=2, hidden=12, balance=0.1)


class Net(nn.Module):
    """Codes of two tables, a layer of experts, a head."""

    def __init__(self, case: Case, dispatcher: Dispatcher | None = None, seed: int = 3) -> None:
        super().__init__()
        self.config = case.moe
        self.tables = nn.ModuleDict(
            {
                name: CodeTable(case.rows, DIM, (seed, name), dispatcher, case.spread_above, std=0.5)
                for name in ("drugs", "wards")
            }
        )
        self.layer = MoELayer(DIM, self.config, 1, 0, seed, dispatcher)
        self.head = nn.Linear(DIM, 2)
        nn.init.normal_(self.head.weight, std=0.3, generator=generator_for(seed, "head"))
        nn.init.zeros_(self.head.bias)
        if case.frozen:
            self.tables.requires_grad_(False)

    def stages(self) -> list[list[nn.Module]]:
        return [[self.layer], [self.head]]

    def forward(self, ids_O: Tensor) -> tuple[Tensor, list[RoutingStats]]:
        x_OD = torch.zeros(len(ids_O), DIM, dtype=self.head.weight.dtype)
        for table in self.tables.values():
            plan = table.lay_out(ids_O)  # type: ignore[operator]
            x_OD = x_OD + plan.uses.spread(table(plan))
        y_OD, stats = self.layer(x_OD, torch.zeros_like(ids_O))
        return self.head(x_OD + y_OD), [stats]


def codes_of(case: Case, step: int, micro: int, rank: int, world: int) -> tuple[Tensor, Tensor, int]:
    """(codes of this rank, what is to be said of each, codes of all ranks)."""
    generator = generator_for("codes", step, micro)
    # Squared, so that small ids are frequent; the last eighth of the ids is never used.
    ids_O = (torch.rand(CODES, generator=generator) ** 2 * (case.rows * 7 // 8)).long()
    y_OC = torch.randn(CODES, 2, generator=generator)
    if case.data == "none" and step % 2:
        return ids_O[:0], y_OC[:0], 1
    if case.data == "rank_empty":
        own = slice(0, CODES) if rank == 0 else slice(0, 0)
    else:
        own = slice(rank * CODES // world, (rank + 1) * CODES // world)
    return ids_O[own], y_OC[own], CODES


def lr_of(step: int) -> float:
    """Share of the base rate: it rises, and falls."""
    return min(1.0, step / 3) * (1 - step / 40)


def losses_of(net: nn.Module, case: Case, micro: tuple[Tensor, Tensor, int], output: tuple[Tensor, list[RoutingStats]]):
    _, y_OC, total = micro
    logits_OC, stats = output
    data = (logits_OC.float() - y_OC).square().sum() / total
    parts = balance_losses(reduce_stats(stats), case.moe)
    return data, sum((parts[name] * getattr(case.moe, name) for name in parts), torch.zeros(()))


def make_engine(rank: int, world: int, case: Case, seed: int = 3) -> Engine:
    parallel = ParallelConfig(workers=world, expert_parallel=case.expert_parallel, zero_stage=case.zero_stage)
    mesh = create_mesh(parallel, case.moe)
    return Engine(
        Net(case, mesh.dispatcher(), seed),
        mesh,
        lr=LR,
        betas=BETAS,
        weight_decay=DECAY,
        no_decay=lambda name, parameter: parameter.ndim <= 1 or "wards" in name,
        zero_stage=case.zero_stage,
        precision=case.precision,
        clip=case.clip,
        accumulation=case.accumulation,
    )


def train_steps(
    engine: Engine, case: Case, rank: int, world: int, first: int, last: int
) -> tuple[list[float], list[float]]:
    """Global loss and gradient norm of steps [first, last)."""
    losses, norms = [], []
    for step in range(first, last):
        engine.set_lr_factor(lr_of(step))
        total = torch.zeros(())
        for number in range(case.accumulation):
            micro = codes_of(case, step, number, rank, world)
            data, balance = losses_of(engine.module, case, micro, engine(micro[0]))
            # A rank without codes says so by a loss that hangs on nothing.
            engine.backward((data + balance) * world if len(micro[0]) else balance.detach() * world)
            total += (data + balance / world).detach() / case.accumulation
        assert engine.step()
        torch.distributed.all_reduce(total)
        losses.append(float(total))
        norms.append(engine.grad_norm())
    return losses, norms


def train_plain(case: Case, steps: int, seed: int = 3) -> dict[str, np.ndarray]:
    """Plain torch: one process, every row of every table in every step."""
    net = Net(Case(rows=case.rows, spread_above=case.rows, frozen=case.frozen), seed=seed)
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    decayed = [p for name, p in trained.items() if p.ndim > 1 and "wards" not in name]
    plain = [p for name, p in trained.items() if p.ndim <= 1 or "wards" in name]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS)
    losses, norms = [], []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * lr_of(step)
        for parameter in trained.values():
            parameter.grad = torch.zeros_like(parameter)
        total = 0.0
        for number in range(case.accumulation):
            micro = codes_of(case, step, number, 0, 1)
            data, balance = losses_of(net, case, micro, net(micro[0]))
            loss = (data + balance) / case.accumulation
            if len(micro[0]):
                loss.backward()
            total += float(loss.detach())
        norms.append(float(nn.utils.clip_grad_norm_(trained.values(), case.clip or 1e9)))
        optimizer.step()
        losses.append(total)
    found = {f"{name}|master": p.detach().numpy() for name, p in trained.items()}
    for role in ("exp_avg", "exp_avg_sq"):
        found |= {f"{name}|{role}": optimizer.state[p][role].numpy() for name, p in trained.items()}
    return {"losses": np.array(losses), "norms": np.array(norms), **found}
