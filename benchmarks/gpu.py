"""The layer, a block and a whole training step on one GPU, in bf16, against the best dense product of the same device.

    python -m benchmarks.gpu [--quick] [--device cpu]

layer  MoELayer forward and backward at widths 1024 to 4096, 8 to 256 experts, 1 to 4 of them a token; the floor is the
       fastest large dense product that this device does; where a loop over experts fits the time, it stands beside
block  one fusion block of the model (attention and experts) between its encoders and heads, forward and backward
step   a model of about a billion parameters: forward, backward, AdamW on fp32 master weights; MFU against the maker's
       peak

Needs torch and nothing else of the cluster: no Ray, DeepSpeed, MLflow or network. Runs in a few minutes. `--device cpu`
runs the same code where there is no GPU, with small shapes, to see that it works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.common import last_line, plain_statistics, presence, random_batch, series_schema, table
from benchmarks.layer import LoopMoE
from data_shards import Batch
from parallel import LocalDispatcher, MoEConfig, MoELayer
from trainer.config.sections import ModelConfig, SeriesEncoderConfig
from trainer.models.flops import FlopCounter
from trainer.models.fusemoe.model import FuseMoE
from trainer.worker.devices import peak_flops

ROWS_AN_EXPERT = 1024
MOST_ROWS = 262_144
LOOP_UP_TO = 64  # experts
SHAPES = [(d, e, k) for d in (1024, 2048, 4096) for e in (8, 64, 256) for k in (1, 2, 4)]
QUICK = [(1024, 8, 2), (2048, 64, 2)]
CPU = [(64, 8, 2)]


def seconds(device: torch.device, call: Callable[[], object], rounds: int) -> float:
    """Median time of a call, after two that warm up."""
    times = []
    for round_ in range(rounds + 2):
        if device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize(device)
            took = begin.elapsed_time(end) / 1e3
        else:
            start = time.perf_counter()
            call()
            took = time.perf_counter() - start
        if round_ >= 2:
            times.append(took)
    return statistics.median(times)


def best_dense(device: torch.device, sizes: list[int]) -> float:
    """FLOP/s of the fastest square product among these sizes."""
    found = []
    for size in sizes:
        a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
        found.append(2 * size**3 / seconds(device, lambda a=a: a @ a, 10))  # type: ignore[misc]
    return max(found)


def forward_backward(module: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    up = torch.randn_like(x)

    def step() -> None:
        module.zero_grad(set_to_none=True)
        call(x.detach().requires_grad_()).backward(up)

    return step


def layer(
    device: torch.device, shape: tuple[int, int, int], dense: float, rounds: int
) -> tuple[dict[str, float], list]:
    """One layer; FLOPs counted are those of the experts only, forward and twice that backward."""
    dim, experts, k = shape
    hidden = 4 * dim if experts <= 64 else dim
    rows_an_expert = ROWS_AN_EXPERT if device.type == "cuda" else 8
    tokens = min(MOST_ROWS, rows_an_expert * experts) // k
    torch.manual_seed(0)
    ours = MoELayer(dim, MoEConfig(experts=experts, top_k=k, hidden=hidden, forced_balance=True))
    ours = ours.to(device, torch.bfloat16)
    x = torch.randn(tokens, dim, device=device, dtype=torch.bfloat16)
    modality = torch.zeros(tokens, dtype=torch.int64, device=device)
    flops = 3 * 2 * tokens * k * 2 * dim * hidden
    took = seconds(device, forward_backward(ours, lambda x: ours(x, modality)[0], x), rounds)
    case = f"d{dim}-e{experts}-k{k}"
    ratios = {f"layer-{case}": flops / took / dense}
    beside: float | str = ""
    if experts <= LOOP_UP_TO and k == 2:
        loop = LoopMoE(dim, hidden, experts, k).to(device, torch.bfloat16)
        beside = flops / seconds(device, forward_backward(loop, loop, x), max(2, rounds // 3)) / 1e12
        ratios[f"loop-{case}"] = beside * 1e12 / dense
    row = [case, hidden, tokens * k // experts, 1e3 * took, flops / took / 1e12, ratios[f"layer-{case}"], beside]
    return ratios, row


def model_of(
    device: torch.device, dim: int, layers: int, experts: int, hidden: int, records: int
) -> tuple[FuseMoE, Batch, float]:
    """A model in bf16 with a batch, and the FLOPs of its forward and backward pass."""
    moe = MoEConfig(experts=experts, top_k=2, hidden=hidden)
    series = SeriesEncoderConfig(irregularity="imputation")
    heads = max(1, dim // 128)
    config = ModelConfig(dim=dim, layers=layers, heads=heads, bins=16, attention="factorized", moe=moe, series=series)
    schema = series_schema(4)
    torch.manual_seed(0)
    model = FuseMoE(schema, list(schema.task_names), plain_statistics(schema), config, LocalDispatcher(), 0)
    model = model.to(device, torch.bfloat16)
    batch = random_batch(schema, presence(records, 4, 4)).to(device)
    counter = FlopCounter(schema, {task.name: task.dim for task in schema.tasks}, config, model.attention)
    return model, batch, counter.step_flops(counter.measure(batch))


def loss_of(model: FuseMoE, batch: Batch) -> Tensor:
    return sum((logits.square().mean() for logits in model(batch).logits.values()), torch.zeros((), device="cpu"))  # type: ignore[arg-type]


def block(device: torch.device, dim: int, peak: float, rounds: int) -> tuple[dict[str, float], list]:
    """A model of one block, forward and backward."""
    records, hidden = (512, 4 * dim) if device.type == "cuda" else (8, dim)
    model, batch, flops = model_of(device, dim, 1, 16, hidden, records)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        loss_of(model, batch).backward()

    took = seconds(device, step, rounds)
    return {f"block-d{dim}": flops / took / peak}, [
        f"block d{dim}",
        1e3 * took,
        flops / took / 1e12,
        flops / took / peak,
    ]


def whole_step(device: torch.device, peak: float, rounds: int) -> tuple[dict[str, float], list]:
    """Forward, backward, and AdamW on fp32 copies of the weights, as the sharded optimizer does on one rank."""
    gpu = device.type == "cuda"
    dim, layers, experts, hidden, records = (2048, 4, 16, 4096, 512) if gpu else (64, 1, 4, 64, 8)
    model, batch, flops = model_of(device, dim, layers, experts, hidden, records)
    weights = list(model.parameters())
    masters = [weight.detach().float() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=1e-4, fused=True)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        loss_of(model, batch).backward()
        for master, weight in zip(masters, weights, strict=True):
            master.grad = weight.grad.float() if weight.grad is not None else torch.zeros_like(master)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_([weight.detach() for weight in weights], masters)

    took = seconds(device, step, rounds)
    number = sum(weight.numel() for weight in weights)
    label = f"step, {number / 1e9:.2f} billion, d{dim}"
    return {f"mfu-d{dim}": flops / took / peak}, [label, 1e3 * took, flops / took / 1e12, flops / took / peak]


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two layers, one block, the step: under a minute")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to see that the code runs")
    parser.add_argument("--rounds", type=int, default=None)
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("error: no GPU here; --device cpu runs the same code with small shapes")
    gpu = device.type == "cuda"
    rounds = chosen.rounds or (5 if chosen.quick or not gpu else 10)
    dense = best_dense(device, [4096, 8192, 12288] if gpu else [256])
    peak, source = peak_flops(device, "bf16")
    name = torch.cuda.get_device_name(device) if gpu else "cpu"
    print(f"{name}: dense {dense / 1e12:.4g} TFLOP/s, peak {peak / 1e12:.4g} TFLOP/s ({source})")
    ratios: dict[str, float] = {}
    rows = []
    for shape in CPU if not gpu else QUICK if chosen.quick else SHAPES:
        found, row = layer(device, shape, dense, rounds)
        ratios |= found
        rows.append(row)
        free(device)
    table(("layer", "hidden", "rows/expert", "ms", "TFLOP/s", "of dense", "loop TFLOP/s"), rows)
    rows = []
    widths = [64] if not gpu else [2048] if chosen.quick else [1024, 2048, 4096]
    for part in [
        *(lambda d=d: block(device, d, peak, rounds) for d in widths),
        lambda: whole_step(device, peak, rounds),
    ]:
        found, row = part()
        ratios |= found
        rows.append(row)
        free(device)
    table(("model", "ms", "TFLOP/s", "of peak"), rows)
    last_line("gpu", ratios, device=str(device), dense_tflops=round(dense / 1e12, 4), peak_tflops=round(peak / 1e12, 4))


if __name__ == "__main__":
    main()
