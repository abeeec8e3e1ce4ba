"""What DeepSpeed and torch import behind our back, and how they are kept from it.

A restarted worker trains again as soon as its imports are done, and half of them serve nothing that is used here:
MLflow (for DeepSpeed's autotuner) and torch's compiler (to be told to keep out of the optimizer). Together they take as
long as torch itself.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def without(module: str) -> Iterator[None]:
    """Imports that use `module` only if it is there do without it."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # Python's own way to say: not there
    try:
        yield
    finally:
        del sys.modules[module]


class AdamW(torch.optim.AdamW):
    """The same optimizer, whose step does not import torch's compiler."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def keep_compiler_out() -> None:
    """Call before an optimizer is made: its first `add_param_group` imports torch's compiler to exclude that method."""
    method = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    if not hasattr(method, "__dynamo_disable"):
        method.__dynamo_disable = method  # type: ignore[attr-defined]  # where torch looks before it imports


def keep_old_names_quiet() -> None:
    """Newer torch has other names for these collectives, and says so at every call; the oldest we support has not."""
    for name in ("reduce_scatter_tensor", "all_gather_into_tensor"):
        warnings.filterwarnings("ignore", f".torch.distributed.{name}. is deprecated", FutureWarning)


@contextmanager
def uncompiled(compiler: Any) -> Iterator[None]:
    """DeepSpeed's `compiler.compile`, a decorator, does nothing: its Muon compiles kernels when imported."""
    compile_kernel = compiler.compile
    compiler.compile = lambda *args, **kwargs: lambda kernel: kernel
    try:
        yield
    finally:
        compiler.compile = compile_kernel
