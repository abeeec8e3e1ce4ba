"""One layer and a whole training step on one GPU, in bf16: TFLOP/s, MFU, peak memory, and where the host waits.

    python -m benchmarks.gpu [--quick] [--engine plain] [--thiek T,H,I,E,K] [--device cpu]

layer  MoELayer, forward and backward, at the shapes of SonicMoE's protocol (tokens, width, hidden width, experts,
       experts a token), natural and dealt routing, beside torch's grouped product in its plainest form and a loop over
       experts; 4·T·K·H·I FLOP forward and twice that backward, for the two matrices of a GELU expert. Target on one
       H100: 400 TFLOP/s forward and backward
step   a model of about a billion parameters at width 2048, half of the modalities present: forward, backward, clipping
       and AdamW, natural and dealt routing, recomputation off and on; MFU against the maker's peak. Target on one
       H100: 30 %

The step runs in the engine of training. Where DeepSpeed is not installed, `--engine plain` runs the same passes with an
AdamW on fp32 masters instead; the output says which it was. No Ray, MLflow or network. It ends within 8 minutes: what
`--seconds` leaves no time for is in the tables without figures. `--device cpu` runs the same code where there is no
GPU, with small shapes, to see that it works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time

import torch

from benchmarks.common import last_line, table
from benchmarks.on_gpu import layer, page, step
from benchmarks.on_gpu.clock import best_dense
from trainer.worker.devices import peak_flops


def main() -> None:
    chosen = _arguments()
    device = torch.device(chosen.device)
    gpu = device.type == "cuda"
    if gpu and not torch.cuda.is_available():
        sys.exit("error: no GPU here; --device cpu runs the same code with small shapes")
    if chosen.engine == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        sys.exit("error: DeepSpeed is not installed here; --engine plain runs the same passes with its own AdamW")
    rounds = chosen.rounds or (5 if chosen.quick or not gpu else 10)
    deadline = time.monotonic() + chosen.seconds
    dense = best_dense(device, [4096, 8192, 12288] if gpu else [256], rounds)
    peak, source = peak_flops(device, "bf16")
    card = torch.cuda.get_device_name(device) if gpu else "cpu"
    head = f"{card}: dense {dense / 1e12:.4g} TFLOP/s, peak {peak / 1e12:.4g} TFLOP/s ({source})"
    print(head, flush=True)
    # The step first: it is what the project is for, and time may be short.
    size = step.BILLION if gpu else step.SMALL
    steps = list(step.step_cases(device, size, chosen.engine, rounds, deadline))
    step_rows = [page.step_row(case, peak) for case in steps]
    print(_step_title(steps, chosen.engine))
    table(page.STEP_COLUMNS, step_rows)
    layers = list(layer.layer_cases(device, _shapes(chosen, gpu), rounds, deadline))
    layer_rows = [page.layer_row(case, dense) for case in layers]
    table(page.LAYER_COLUMNS, layer_rows)
    waited = page.where_waited([case.taken for case in steps] + [case.both for case in layers if "ours" in case.kind])
    print(f"\n### On one {card}, torch {torch.__version__}\n\n{head}.\n")
    print(_step_title(steps, chosen.engine) + "\n")
    print(page.markdown(page.STEP_COLUMNS, step_rows))
    print(f"\nTFLOP/s of one layer, 4·T·K·H·I forward and twice that backward; target {layer.TARGET / 1e12:.0f}:\n")
    print(page.markdown(page.LAYER_COLUMNS, layer_rows))
    print(f"\nThe host waited at: {', '.join(waited) or 'nowhere' if gpu else 'not counted on a CPU'}.\n")
    ratios = {f"mfu, {case.name}": case.flops / case.taken.seconds / peak for case in steps if case.taken}
    ratios |= {f"{case.kind}, {case.name}": case.rates[2] / dense for case in layers if case.both}
    last_line(
        "gpu",
        ratios,
        device=str(device),
        card=card,
        engine=chosen.engine,
        dense_tflops=round(dense / 1e12, 4),
        peak_tflops=round(peak / 1e12, 4),
        failed={f"{case.kind}, {case.name}": case.failed for case in layers if case.failed}
        | {case.name: case.failed for case in steps if case.failed},
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the step and one layer, fewer rounds")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to see that the code runs")
    parser.add_argument("--engine", choices=step.ENGINES, default="deepspeed", help="plain: without DeepSpeed")
    parser.add_argument("--thiek", type=_shape, help="one layer of this shape instead: T,H,I,E,K")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--seconds", type=int, default=450, help="no case begins after so many")
    return parser.parse_args()


def _shape(text: str) -> layer.Shape:
    numbers = tuple(int(word) for word in text.split(","))
    if len(numbers) != 5 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be five numbers T,H,I,E,K of at least 1")
    return numbers


def _shapes(chosen: argparse.Namespace, gpu: bool) -> dict[str, layer.Shape]:
    if chosen.thiek:
        return {"given": chosen.thiek}
    if not gpu:
        return layer.CPU_SHAPES
    return {"protocol": layer.SHAPES["protocol"]} if chosen.quick else layer.SHAPES


def _step_title(cases: list[step.StepCase], engine: str) -> str:
    first = cases[0]
    return (
        f"A step of {first.parameters / 1e9:.3g} billion parameters, width {first.size.dim}, {first.tokens:,} tokens, "
        f"half of {first.size.modalities} modalities present, engine {engine}; MFU target {step.TARGET:.0%}:"
    )


if __name__ == "__main__":
    main()
