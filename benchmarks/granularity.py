"""One routing decision a sample over the flattened sequence, as the FuseMoE paper has it, against one a token.

    python -m benchmarks.granularity [--quick]

flattened   the paper's layer: a sample is one vector of T * d * M numbers, its experts map that vector to itself, and
            every absent modality is filled in; a loop over experts
token, bin, sample   `parallel.MoELayer`: experts of width d, decisions of a token, a time bin or a sample

Same experts, k and hidden width, so arithmetic is the same where everything is present; parameters are not. A step is
forward, backward and AdamW. Ratios are the flattened layer's figure over the token layer's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common import Step, arguments, last_line, table, take_turns
from parallel import MoEConfig, MoELayer, decision_units

EXPERTS, TOP_K, HIDDEN, DIM = 16, 4, 128, 32


@dataclass(frozen=True)
class Case:
    """B samples, T bins, M modalities, of which a share is present."""

    samples: int
    bins: int
    modalities: int
    present: float

    @property
    def name(self) -> str:
        return f"T{self.bins}-M{self.modalities}-{self.present:.0%}"


class FlattenedMoE(nn.Module):
    """Joint router and experts over the whole sequence of a sample: (B, T * d * M) -> the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, EXPERTS, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, width)) for _ in range(EXPERTS)
        )

    def forward(self, x_BX: Tensor) -> Tensor:
        values_BK, experts_BK = self.gate(x_BX).topk(TOP_K, dim=1)
        weights_BK = functional.softmax(values_BK, dim=1)
        y_BX = torch.zeros_like(x_BX)
        for e, expert in enumerate(self.experts):
            sample, slot = torch.nonzero(experts_BK == e, as_tuple=True)
            y_BX = y_BX.index_add(0, sample, expert(x_BX[sample]) * weights_BK[sample, slot][:, None])
        return y_BX


def trained(module: nn.Module, forward: Step) -> Step:
    """Forward, backward and update."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        forward().square().mean().backward()
        optimizer.step()

    return step


def alternatives(case: Case) -> dict[str, tuple[nn.Module, Step, float]]:
    """Module, step and FLOPs of its forward pass, by name."""
    flat = FlattenedMoE(case.bins * DIM * case.modalities)
    x_BX = torch.randn(case.samples, case.bins * DIM * case.modalities, requires_grad=True)
    rows = case.samples * TOP_K
    found: dict[str, tuple[nn.Module, Step, float]] = {}
    width = x_BX.shape[1]
    flops = 2.0 * rows * 2 * width * HIDDEN + 2.0 * case.samples * width * EXPERTS
    found["flattened"] = (flat, trained(flat, lambda: flat(x_BX)), flops)
    there_BM = torch.rand(case.samples, case.modalities) < case.present
    sample_P, modality_P = there_BM.nonzero(as_tuple=True)
    sample_N, modality_N = sample_P.repeat_interleave(case.bins), modality_P.repeat_interleave(case.bins)
    bin_N = torch.arange(case.bins).repeat(len(sample_P))
    x_ND = torch.randn(len(sample_N), DIM, requires_grad=True)
    for granularity in ("token", "bin", "sample"):
        config = MoEConfig(experts=EXPERTS, top_k=TOP_K, hidden=HIDDEN, gate="softmax", granularity=granularity)  # type: ignore[arg-type]
        layer = MoELayer(DIM, config, case.modalities)
        unit_N, units = decision_units(config, sample_N, bin_N, case.samples, case.bins)

        def forward(layer: nn.Module = layer, unit_N: Tensor | None = unit_N, units: int = units) -> Tensor:
            return layer(x_ND, modality_N, unit_N, units)[0]  # type: ignore[no-any-return]

        decisions = units if unit_N is not None else len(x_ND)
        flops = 2.0 * len(x_ND) * TOP_K * 2 * DIM * HIDDEN + 2.0 * decisions * DIM * EXPERTS
        found[granularity] = (layer, trained(layer, forward), flops)
    return found


def main() -> None:
    chosen = arguments(__doc__)
    rounds = chosen.rounds or (3 if chosen.quick else 7)
    cases = [
        Case(32, 12, 4, 1.0),
        Case(32, 24, 4, 1.0),
        Case(32, 24, 8, 1.0),
        Case(32, 24, 16, 1.0),
        Case(32, 24, 16, 0.5),
    ]
    ratios: dict[str, float] = {}
    rows: list[list[object]] = []
    for case in cases[:3] if chosen.quick else cases:
        built = alternatives(case)
        seconds = take_turns({name: step for name, (_, step, _) in built.items()}, rounds)
        sizes = {name: sum(p.numel() for p in module.parameters()) for name, (module, _, _) in built.items()}
        for name, (_, _, flops) in built.items():
            # Weights, gradients and two moments, in fp32.
            rows.append(
                [case.name, name, sizes[name] / 1e6, flops / 1e9, 1e3 * seconds[name], 16 * sizes[name] / 2**20]
            )
        ratios[f"{case.name}-parameters"] = sizes["flattened"] / sizes["token"]
        ratios[f"{case.name}-flops"] = built["flattened"][2] / built["token"][2]
        ratios[f"{case.name}-time"] = seconds["flattened"] / seconds["token"]
    table(("case", "layer", "M parameters", "GFLOP forward", "step ms", "state MiB"), rows)
    last_line("granularity", ratios, experts=EXPERTS, top_k=TOP_K, hidden=HIDDEN, dim=DIM, rounds=rounds)


if __name__ == "__main__":
    main()
