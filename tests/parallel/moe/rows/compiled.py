"""Every Triton kernel, compiled for a card that need not be there. `test_triton.py` runs this file in a process of its
own, as a kernel is interpreted or compiled for the whole life of a process.
"""

import re
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from parallel.moe.rows import bias_triton, places_triton, sums_triton

H100 = GPUTarget("cuda", 90, 32)
BF16, FP32, INT64, INT32, INT8, NUMBER = "*bf16", "*fp32", "*i64", "*i32", "*i8", "i32"
KERNELS = [
    (sums_triton._sum_kernel, [BF16, INT64, FP32, BF16, NUMBER, NUMBER, NUMBER], [True, 4, 1024]),
    (sums_triton._sum_kernel, [BF16, INT64, BF16, BF16, NUMBER, NUMBER, NUMBER], [False, 64, 64]),
    (sums_triton._spread_kernel, [BF16, BF16, FP32, INT64, BF16, FP32, NUMBER, NUMBER, NUMBER], [4, 1024]),
    (sums_triton._segments_kernel, [BF16, INT64, INT64, FP32, NUMBER], [True, 16, 128]),
    (places_triton._bounds_kernel, [INT64, INT64, NUMBER, NUMBER, NUMBER], [256]),
    (places_triton._label_kernel, [INT64, FP32, *[INT64] * 3, FP32, *[NUMBER] * 4], [False, 512, 2]),
    (places_triton._label_kernel, [INT64, FP32, *[INT64] * 3, FP32, *[NUMBER] * 4], [True, 256, 4]),
    (bias_triton._gelu_kernel, [BF16, BF16, INT32, BF16, *[NUMBER] * 4], [True, True, 4, 1024]),
    (bias_triton._gelu_kernel, [BF16, BF16, INT32, BF16, *[NUMBER] * 4], [True, False, 4, 1024]),
    (bias_triton._gelu_backward_kernel, [BF16, BF16, BF16, INT32, BF16, *[NUMBER] * 4], [True, 4, 1024]),
    (bias_triton._gelu_backward_kernel, [BF16, BF16, BF16, INT32, BF16, *[NUMBER] * 4], [False, 64, 64]),
    (bias_triton._sum_kernel, [BF16, INT32, FP32, NUMBER, NUMBER], [16, 32, 128]),
    (places_triton._pairs_kernel, [INT64, INT8, INT64, *[NUMBER] * 4], [8, 512]),
    (places_triton._list_kernel, [INT8, INT64, INT64, INT64, INT64, *[NUMBER] * 3], [True, 512]),
    (places_triton._list_kernel, [INT8, INT64, INT64, INT64, INT64, *[NUMBER] * 3], [False, 512]),
    (places_triton._place_kernel, [*[INT64] * 4, INT32, INT32, INT64, *[NUMBER] * 5], [64, 512]),
]


def compiled(kernel: Any, types: list[str], constants: list[Any]) -> dict[str, Any]:
    names = kernel.arg_names
    signature = dict(zip(names, [*types, *["constexpr"] * len(constants)], strict=True))
    places = {(len(types) + i,): value for i, value in enumerate(constants)}
    asm: dict[str, Any] = triton.compile(ASTSource(kernel, signature, places), target=H100).asm
    return asm


@pytest.mark.parametrize(("kernel", "types", "constants"), KERNELS)
def test_compiles_and_adds_up_nothing_but_whole_numbers_by_atomics(
    kernel: Any, types: list[str], constants: list[Any]
) -> None:
    asm = compiled(kernel, types, constants)
    assert len(asm["cubin"]) > 1000
    atomics = re.findall(r"\b(?:atom|red)\.\S+", asm["ptx"])
    assert all(name.endswith((".u64", ".s64")) for name in atomics), atomics
    assert bool(atomics) == (kernel is places_triton._pairs_kernel)
