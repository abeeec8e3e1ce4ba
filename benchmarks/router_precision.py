"""What the precision of a router's product does to the choice of experts: `python -m benchmarks.router_precision`.

Tokens in bf16 with a common offset, prototypes in bf16 as in a bf16 run, logits in fp64 as the truth. For each way to
multiply: the share of decisions whose two best experts stay the same, and the error of the logits (root mean square).
TF32 is emulated by rounding both operands to its 10 bits of mantissa; sums are fp32.
"""

from __future__ import annotations

import argparse
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from parallel.moe.gates import DISTANCE_EPS
from parallel.moe.router_product import group_rows, product

GATES = ("softmax", "laplace", "gaussian")


def tf32(x: Tensor) -> Tensor:
    """To the nearest number with 10 bits of mantissa."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def products(z_ND: Tensor, w_DE: Tensor) -> dict[str, Tensor]:
    """Way to multiply -> z · w."""
    one_group = group_rows(torch.zeros(len(z_ND), dtype=torch.int64), 1)
    rounded = z_ND.bfloat16().float() @ w_DE.float()
    with mock.patch("parallel.moe.router_product.on_gpu", lambda _: True):
        halves, grouped = product(z_ND, w_DE[None], None), product(z_ND, w_DE[None], one_group)
    return {
        "TF32": tf32(z_ND) @ tf32(w_DE.float()),
        "bf16": rounded,
        "halves": halves,
        "bf16, result in bf16": rounded.bfloat16().float(),
        "grouped": grouped,
    }


def logits(gate: str, product_NE: Tensor, z_ND: Tensor, w_DE: Tensor) -> Tensor:
    """As `parallel.moe.gates`, in fp64."""
    if gate == "softmax":
        return product_NE
    width, w_DE = len(w_DE), w_DE.double()
    squared_NE = width * w_DE.square().sum(0) - 2 * width**0.5 * product_NE
    squared_NE = squared_NE + z_ND.double().square().sum(1, keepdim=True) + DISTANCE_EPS
    return -squared_NE.sqrt() if gate == "laplace" else -squared_NE / width**0.5


def best_two(logits_NE: Tensor) -> Tensor:
    return logits_NE.float().topk(2).indices.sort(1).values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--experts", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--tokens", type=int, default=8192)
    args = parser.parse_args()
    for width in args.widths:
        for experts in args.experts:
            torch.manual_seed(0)
            x_ND = (torch.randn(args.tokens, width) + torch.randn(width)).bfloat16()
            w_DE = (torch.randn(width, experts) * width**-0.5).bfloat16()
            z_ND = F.layer_norm(x_ND.float(), (width,))
            truth_NE, found = z_ND.double() @ w_DE.double(), products(z_ND, w_DE)
            for gate in GATES:
                exact_NE = logits(gate, truth_NE, z_ND, w_DE)
                cells = []
                for name, made_NE in found.items():
                    got_NE = logits(gate, made_NE.double(), z_ND, w_DE)
                    same = float((best_two(got_NE) == best_two(exact_NE)).all(1).double().mean())
                    cells.append(f"{name} {100 * same:.2f} % {float((got_NE - exact_NE).square().mean().sqrt()):.1e}")
                print(f"D {width}, E {experts}, {gate}: " + " | ".join(cells), flush=True)


if __name__ == "__main__":
    main()
