"""One mixture-of-experts layer by the protocol of SonicMoE, beside two peers on the same device.

A shape is T,H,I,E,K: tokens, width, hidden width of an expert, experts, experts a token. Arithmetic counted is that of
the experts' matrices and nothing else, as the protocol does: with the two matrices of a GELU expert 4·T·K·H·I forward
(the protocol's SwiGLU experts have three: 6·T·K·H·I) and twice that backward.

    ours         MoELayer as training uses it: gate, choice, statistics, biases
    ours dealt   the same with tokens dealt to experts in turn (`forced_balance`)
    grouped_mm   the plainest use of torch's grouped product: top-k, sort, gather, two products, weights, sum; no bias
    loop         one module an expert, rows by index, results added by index
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.layer import LoopMoE
from benchmarks.on_gpu.clock import Taken, free, held, timed
from parallel import MoEConfig, MoELayer

Shape = tuple[int, int, int, int, int]

# Tokens as in the protocol; widths are those that the models' makers publish.
SHAPES: dict[str, Shape] = {
    "protocol": (32768, 4096, 1024, 128, 8),
    "OLMoE-1B-7B": (32768, 2048, 1024, 64, 8),
    "gpt-oss-20b": (32768, 2880, 2880, 32, 4),
    "Qwen3-Next-80B": (32768, 2048, 512, 512, 10),
    "Qwen3-235B": (32768, 4096, 1536, 128, 8),
    "DeepSeek-V3.2": (32768, 7168, 2048, 256, 8),
}
CPU_SHAPES: dict[str, Shape] = {"small": (256, 64, 32, 8, 2)}
TARGET = 400e12  # FLOP/s on one H100, forward and backward


@dataclass
class LayerCase:
    """One layer of one kind at one shape; `failed` says why there are no figures."""

    name: str
    shape: Shape
    kind: str
    forward: Taken | None = None
    both: Taken | None = None
    failed: str = ""

    @property
    def rates(self) -> tuple[float, float, float]:
        """FLOP/s of the forward pass, the backward pass, and both together."""
        assert self.forward is not None and self.both is not None
        flops = forward_flops(self.shape)
        # Both are medians of runs of their own: with few rounds on a busy machine their difference may vanish.
        backward = max(self.both.seconds - self.forward.seconds, 1e-9)
        return flops / self.forward.seconds, 2 * flops / backward, 3 * flops / self.both.seconds


def forward_flops(shape: Shape) -> float:
    """4·T·K·H·I."""
    tokens, dim, hidden, _, k = shape
    return 4.0 * tokens * k * dim * hidden


class GroupedMoE(nn.Module):
    """The plainest layer on torch's grouped product."""

    def __init__(self, dim: int, hidden: int, experts: int, k: int) -> None:
        super().__init__()
        self.k, self.experts = k, experts
        self.gate_DE = nn.Parameter(torch.randn(dim, experts) * dim**-0.5)
        self.w1_EDF = nn.Parameter(torch.randn(experts, dim, hidden) * dim**-0.5)
        self.w2_EFD = nn.Parameter(torch.randn(experts, hidden, dim) * hidden**-0.5)

    def forward(self, x_ND: Tensor) -> Tensor:
        values_NK, experts_NK = (x_ND @ self.gate_DE).topk(self.k, dim=1)
        sorted_R, order_R = experts_NK.flatten().sort(stable=True)
        ends_E = torch.searchsorted(sorted_R, torch.arange(self.experts, device=x_ND.device), right=True)
        offsets_E = ends_E.to(torch.int32)
        hidden_RF = F.gelu(F.grouped_mm(x_ND[order_R // self.k], self.w1_EDF, offs=offsets_E))
        y_RD = F.grouped_mm(hidden_RF, self.w2_EFD, offs=offsets_E)
        inverse_R = torch.empty_like(order_R).scatter_(0, order_R, torch.arange(len(order_R), device=x_ND.device))
        y_NKD = y_RD[inverse_R].view(len(x_ND), self.k, -1)
        return torch.einsum("nk,nkd->nd", values_NK.softmax(1), y_NKD)


def layer_cases(device: torch.device, shapes: dict[str, Shape], rounds: int, deadline: float) -> Iterator[LayerCase]:
    """Every kind of layer at every shape, one after the other; none begins after the deadline (monotonic clock)."""
    for name, shape in shapes.items():
        for kind in ("ours", "ours dealt", "grouped_mm", "loop"):
            case = LayerCase(name, shape, kind)
            try:
                case.failed = "no time" if time.monotonic() > deadline else ""
                if not case.failed:
                    _measure(case, device, max(2, rounds // 3) if kind == "loop" else rounds)
            except torch.OutOfMemoryError:
                case.failed = "out of memory"
            free(device)
            yield case


def _measure(case: LayerCase, device: torch.device, rounds: int) -> None:
    (tokens, dim), base = case.shape[:2], held(device)
    torch.manual_seed(0)
    x = torch.randn(tokens, dim, device=device, dtype=torch.bfloat16, requires_grad=True)
    up = torch.randn_like(x)
    module, call = _layer(case, device)

    def both() -> None:
        module.zero_grad(set_to_none=True)
        x.grad = None
        call(x).backward(up)

    # A graph is made as in training, and dropped.
    case.forward = timed(device, lambda: call(x), rounds, base)
    case.both = timed(device, both, rounds, base)


def _layer(case: LayerCase, device: torch.device) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    tokens, dim, hidden, experts, k = case.shape
    if case.kind.startswith("ours"):
        layer = our_layer(case.shape, device, dealt=case.kind == "ours dealt")
        modality = torch.zeros(tokens, dtype=torch.int64, device=device)
        return layer, lambda x: layer(x, modality)[0]
    kind = GroupedMoE if case.kind == "grouped_mm" else LoopMoE
    with torch.device(device):
        peer = kind(dim, hidden, experts, k).to(torch.bfloat16)
    return peer, peer


def our_layer(shape: Shape, device: torch.device, dealt: bool) -> MoELayer:
    """The layer in bf16, its weights drawn on the device: by its own rule, a number an expert, it takes minutes."""
    _, dim, hidden, experts, k = shape
    config = MoEConfig(experts=experts, top_k=k, hidden=hidden, forced_balance=dealt)
    with torch.device("meta"):
        layer = MoELayer(dim, config)
    assert not list(layer.buffers()), "buffers would be left without values"
    layer = layer.to(torch.bfloat16).to_empty(device=device)
    with torch.no_grad():
        for parameter in layer.parameters():
            matrix = parameter.ndim > 1 and parameter.shape[-2] > 1
            nn.init.normal_(parameter, std=parameter.shape[-2] ** -0.5) if matrix else parameter.zero_()
    return layer
