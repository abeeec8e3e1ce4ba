"""How many bytes of tensors are alive at once, whatever the machine's allocator makes of them.

Storages are counted, so a view costs nothing, and each until its last user drops it. What an operation takes and gives
back inside itself is not seen.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """`held`: bytes alive when the context began; `now`, and `peak`: the most since; `at_peak`: what they were.

    `at_peak` counts bytes by the operation that made a storage and its size; what was there before is `held`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[int, str]] = {}
        self.now = self.peak = 0
        self.at_peak: Counter[tuple[str, int]] = Counter()
        self._count((o for o in gc.get_objects() if isinstance(o, Tensor)), "held")
        self.held = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._count((leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)), str(func))
        if self.now > self.peak:
            self.peak = self.now
            self.at_peak = Counter()
            # As they are in this moment: a thread of gloo may drop a tensor meanwhile.
            for size, maker in list(self._alive.values()):
                self.at_peak[maker, size if maker != "held" else 0] += size
        return out

    def _count(self, tensors: Iterable[Tensor], maker: str) -> None:
        for tensor in tensors:
            if tensor.is_meta or tensor.layout != torch.strided:
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self._alive and storage.nbytes():
                self._alive[storage._cdata] = storage.nbytes(), maker
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, key: int) -> None:
        self.now -= self._alive.pop(key)[0]
