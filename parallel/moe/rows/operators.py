"""How an operator of a layer is known to torch: one name, one version for CPUs, one for GPUs.

torch's own dispatch picks the version by where the tensors are, so a mode that watches operations sees one of ours as
it sees any other, on a CPU as on a GPU. The GPU's is a Triton kernel; where Triton is not installed it is the torch
version that the kernel is tested against, which is slower and says so once.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

log = logging.getLogger(__name__)
LIBRARY = torch.library.Library("fleximoe", "DEF")

Version = Callable[..., Any]


def operator(schema: str, plain: Version, cpu: Version | None = None, triton: str = "") -> Version:
    """Define an operator.

    Args:
        schema: name and arguments in torch's notation.
        plain: the torch version for any device; it must not make the host wait.
        cpu: a quicker version for CPUs, where the host may look at numbers.
        triton: module (below this folder) whose function of the operator's name is the version for GPUs.
    """
    name = schema.split("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, cpu or plain, "CPU")
    LIBRARY.impl(name, plain, "Meta")  # shapes without numbers: no number is ever looked at

    def on_a_gpu(*arguments: Any) -> Any:
        return _version(triton, name, plain)(*arguments)

    LIBRARY.impl(name, on_a_gpu, "CUDA")
    overload: Version = getattr(torch.ops.fleximoe, name).default
    return overload


@cache
def _version(module: str, name: str, plain: Version) -> Version:
    if has_triton():
        found: Version = getattr(importlib.import_module(f"{__package__}.{module}"), name)
        return found
    return plain


@cache
def has_triton() -> bool:
    """Whether GPU tensors are served by Triton kernels; if not, that is logged once."""
    found = importlib.util.find_spec("triton") is not None
    if not found:
        log.warning(
            "Triton is not installed, so layers of experts move their rows by several torch operations each on this "
            "GPU: exact, but slower. Install triton in the version that belongs to this torch."
        )
    return found
