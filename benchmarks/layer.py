"""One mixture-of-experts layer on one CPU thread, forward and backward: ours against a floor and two peers.

    python -m benchmarks.layer [--quick] [--bf16]

    floor      one dense MLP (Linear, GELU, Linear, with biases) on T*K rows: the experts' arithmetic with one small
               weight and no routing
    loop       one module an expert, indexed rows, results added by index: how most research code does it
    deepspeed  deepspeed.moe.layer.MoE without dropping tokens, K experts a token, its softmax gate

Time is CPU time of the process, so a busy machine disturbs it less. The alternatives take turns in one process; a ratio
is the median over rounds of an alternative's time over the floor's time in the same round. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from parallel import MoEConfig, MoELayer, init_distributed

Shape = tuple[int, int, int, int, int]  # T tokens, d width, h expert hidden width, E experts, k experts a token
SHAPES = [(4096, 256, 1024, 32, 2), (4096, 128, 512, 128, 4), (8192, 256, 512, 256, 4)]
QUICK_SHAPES = [(1024, 128, 512, 16, 2)]


class LoopMoE(nn.Module):
    """Softmax gate, top-k, one MLP module an expert."""

    def __init__(self, dim: int, hidden: int, experts: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.gate = nn.Linear(dim, experts, bias=False)
        self.experts = nn.ModuleList(mlp(dim, hidden) for _ in range(experts))

    def forward(self, x_ND: Tensor) -> Tensor:
        values_NK, experts_NK = self.gate(x_ND).topk(self.k, dim=1)
        weights_NK = values_NK.softmax(1)
        y_ND = torch.zeros_like(x_ND)
        for e, expert in enumerate(self.experts):
            token, slot = torch.nonzero(experts_NK == e, as_tuple=True)
            y_ND = y_ND.index_add(0, token, expert(x_ND[token]) * weights_NK[token, slot][:, None])
        return y_ND


def mlp(dim: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


def deepspeed_moe(dim: int, hidden: int, experts: int, k: int) -> nn.Module:
    from deepspeed.moe.layer import MoE

    with contextlib.redirect_stdout(io.StringIO()):
        layer = MoE(
            dim,
            mlp(dim, hidden),
            num_experts=experts,
            k=k,
            drop_tokens=False,
            use_rts=False,
            top2_2nd_expert_sampling=False,
        )
        layer.set_deepspeed_parallelism()
    return layer


def once(module: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor, up: Tensor) -> float:
    """CPU seconds of forward plus backward, for all gradients."""
    x = x.detach().requires_grad_()
    module.zero_grad(set_to_none=True)
    start = time.process_time()
    call(x).backward(up)
    return time.process_time() - start


def measure_shape(shape: Shape, dtype: torch.dtype, rounds: int, peers: bool) -> dict[str, list[float]]:
    """Seconds of forward plus backward by name, one entry a round."""
    tokens, dim, hidden, experts, k = shape
    torch.manual_seed(0)
    x, up = torch.randn(tokens, dim, dtype=dtype), torch.randn(tokens, dim, dtype=dtype)
    rows, rows_up = torch.randn(tokens * k, dim, dtype=dtype), torch.randn(tokens * k, dim, dtype=dtype)
    modality = torch.zeros(tokens, dtype=torch.int64)
    floor = mlp(dim, hidden).to(dtype)
    ours = MoELayer(dim, MoEConfig(experts=experts, top_k=k, hidden=hidden)).to(dtype)
    alternatives: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor], Tensor, Tensor]] = {
        "floor": (floor, floor, rows, rows_up),
        "ours": (ours, lambda x: ours(x, modality)[0], x, up),
    }
    if peers:
        loop, deep = LoopMoE(dim, hidden, experts, k).to(dtype), deepspeed_moe(dim, hidden, experts, k).to(dtype)
        alternatives |= {"loop": (loop, loop, x, up), "deepspeed": (deep, lambda x: deep(x)[0], x, up)}
    times: dict[str, list[float]] = {name: [] for name in alternatives}
    for round_ in range(rounds + 1):
        for name, arguments in alternatives.items():
            seconds = once(*arguments)
            if round_:  # the first warms up
                times[name].append(seconds)
    return times


def ratios_of(times: dict[str, list[float]]) -> dict[str, float]:
    """Median over rounds of time over the floor's time, for all but the floor."""
    return {
        name: round(statistics.median(a / b for a, b in zip(values, times["floor"], strict=True)), 3)
        for name, values in times.items()
        if name != "floor"
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small shape, few rounds")
    parser.add_argument("--rounds", type=int, default=None, help="rounds of each shape")
    parser.add_argument("--no-peers", action="store_true", help="only ours and the floor")
    parser.add_argument("--bf16", action="store_true", help="also in bf16")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.no_peers:
        init_distributed("cpu")
    rounds = arguments.rounds or (3 if arguments.quick else 9)
    ratios, milliseconds = {}, {}
    print(f"{'T, d, h, E, k':32} {'dtype':9} {'floor ms':>9}   time over floor")
    for shape in QUICK_SHAPES if arguments.quick else SHAPES:
        for dtype in [torch.float32, *([torch.bfloat16] if arguments.bf16 else [])]:
            times = measure_shape(shape, dtype, rounds, not arguments.no_peers)
            key = "x".join(map(str, shape)) + ("" if dtype == torch.float32 else "-bf16")
            ratios[key] = ratios_of(times)
            milliseconds[key] = {name: round(statistics.median(values) * 1e3, 1) for name, values in times.items()}
            words = "  ".join(f"{name} {ratio:.2f}" for name, ratio in ratios[key].items())
            number = str(dtype).removeprefix("torch.")
            print(f"{shape!s:32} {number:9} {milliseconds[key]['floor']:9.1f}   {words}", flush=True)
    print(json.dumps({"benchmark": "layer", "threads": 1, "rounds": rounds, "ratios": ratios, "ms": milliseconds}))


if __name__ == "__main__":
    main()
