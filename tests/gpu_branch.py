"""What a GPU would run, watched on a CPU: its branches forced, its operations counted.

    with gpu_branch(), Watch() as watch:
        with watch.phase("forward"):
            y = layer(x)
        with watch.phase("backward"):
            y.sum().backward()
    assert watch.waits["forward"] == 0

A CPU hides what a GPU makes slow or inexact: it never waits for itself, and it adds bf16 rows up in fp32 where a GPU
rounds at every atomic addition. So a test looks at the operations, not at the results.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("launch", "trainer", "parallel", "data_shards")
# Where the program asks for a GPU: (module, function of a tensor). Everything else must follow from these.
SEAMS: list[tuple[str, str]] = [("parallel.moe.grouped_matmul", "on_gpu")]

# Host waits of an operation on CUDA tensors, by its name without overload.
WAITS = {
    "_local_scalar_dense": 1,  # item, float, int, bool
    "nonzero": 1,
    "argwhere": 1,
    "masked_select": 1,
    "bincount": 2,  # for the least and for the largest number
    "unique_dim": 1,
    "_unique": 1,
    "_unique2": 1,
    "unique_consecutive": 1,
    "equal": 1,
    "lift_fresh": 1,  # torch.tensor(list): a copy from memory that is not pinned
}
# Adds up what lies at equal places, on a GPU by atomics.
SCATTERS = {
    "index_add",
    "index_add_",
    "scatter_add",
    "scatter_add_",
    "scatter_reduce",
    "scatter_reduce_",
    "index_reduce",
    "index_reduce_",
    "embedding_dense_backward",
    "embedding_backward",
    "_embedding_bag_dense_backward",
    "_embedding_bag_backward",
    "index_select_backward",
    "gather_backward",
    "_segment_reduce_backward_scatter",
}
PUTS = {"index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put", "put", "put_"}  # with accumulate=True
FREE = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "_unsafe_view", "detach", "alias")
LOW_PRECISION = (torch.bfloat16, torch.float16)


class Found(NamedTuple):
    """An operation worth a look: in which phase, which, on what, and the project's line that caused it."""

    phase: str
    name: str
    dtype: torch.dtype | None
    where: str


@contextlib.contextmanager
def gpu_branch(*more: tuple[str, str]) -> Iterator[None]:
    """Force the branches for GPUs on CPU tensors; `more` are further seams (module, function of a tensor)."""
    with contextlib.ExitStack() as stack:
        for module, name in [*SEAMS, *more]:
            original = getattr(__import__(module, fromlist=[name]), name)
            # Also where another module has taken the name.
            for other in [m for key, m in list(sys.modules.items()) if key.split(".")[0] in ROOMS]:
                if getattr(other, name, None) is original:
                    stack.enter_context(mock.patch.object(other, name, lambda *_: True))
        yield


class Watch(TorchDispatchMode):
    """Counts operations and host waits by phase and collects accumulating scatters.

    kernels: operations that launch work; views, allocations and collectives are none.
    waits: times the host would wait for the device. What `cpu()` returned, what was made without naming a device, and
    what is made of these alone, is on the host, which does not wait for itself; any other tensor passes for one of the
    device.
    found_waits, scatters: each of them with the line of the project that caused it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.by_name: dict[str, Counter[str]] = {}
        self.found_waits: list[Found] = []
        self.scatters: list[Found] = []
        self.collectives: list[Found] = []
        self._phase = ""
        self._host: dict[int, torch.UntypedStorage] = {}  # held, so that no other one gets its address
        self._functions = _Functions(self)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    def low_precision_scatters(self) -> list[Found]:
        """What must never be in a step."""
        return [found for found in self.scatters if found.dtype in LOW_PRECISION]

    def __enter__(self) -> Watch:
        self._functions.start()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._functions.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        result = func(*args, **kwargs)
        given = _tensors(args)
        on_host = bool(given) and all(self.is_on_host(tensor) for tensor in given)
        if on_host:
            self.put_on_host(result)
            return result
        if func.namespace in ("c10d", "_c10d_functional"):
            dtypes = [t.dtype for t in given]
            self.collectives.append(Found(self._phase, name, dtypes[0] if dtypes else None, where()))
            return result
        self.note_wait(name, self._waits_of(name, args, kwargs))
        if name in SCATTERS or (name in PUTS and _accumulates(func, args, kwargs)):
            self.scatters.append(Found(self._phase, name, _dtype_of(result), where()))
        if not is_free(func, name) and not (self._functions.silent and name not in ("zeros", "scatter_")):
            self.kernels[self._phase] += 1
            self.by_name.setdefault(self._phase, Counter())[f"{func.namespace}.{name}"] += 1
        return result

    def is_on_host(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._host

    def put_on_host(self, result: Any) -> None:
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            self._host[storage._cdata] = storage

    def note_wait(self, name: str, times: int) -> None:
        if times and not self._functions.silent:
            self.waits[self._phase] += times
            self.found_waits += [Found(self._phase, name, None, where())] * times

    def _waits_of(self, name: str, args: Any, kwargs: Any) -> int:
        if name == "repeat_interleave" and kwargs.get("output_size") is None and len(args) < 3:
            return int(isinstance(args[-1], Tensor))
        if name in ("index", *PUTS):
            # A mask as an index: its true places are looked for first.
            return sum(i is not None and i.dtype in (torch.bool, torch.uint8) for i in _indices(args))
        return WAITS.get(name, 0)


class _Functions:
    """What no dispatch mode sees: on a CPU these need no operation. A mode of functions would not see them either in a
    pass that is recomputed backward, so for the time of the watch they are replaced."""

    READS = ("tolist", "numpy", "cpu", "__array__", "to")
    MAKERS = ("tensor", "zeros", "ones", "full", "empty", "arange")

    def __init__(self, watch: Watch) -> None:
        self.watch, self.silent = watch, False
        self._patches = contextlib.ExitStack()

    def start(self) -> None:
        for name in self.READS:
            self._patches.enter_context(mock.patch.object(Tensor, name, self._counted(name, getattr(Tensor, name))))
        for name in self.MAKERS:
            self._patches.enter_context(mock.patch.object(torch, name, self._made(getattr(torch, name))))
        self._patches.enter_context(mock.patch.object(F, "one_hot", self._silenced(F.one_hot)))
        self._patches.enter_context(mock.patch.object(Tensor, "__setitem__", self._set(Tensor.__setitem__)))

    def stop(self) -> None:
        self._patches.close()

    def _counted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if (name == "to" and not self._leaves(args[1:], kwargs)) or self.watch.is_on_host(args[0]):
                return original(*args, **kwargs)
            self.watch.note_wait(name, 1)
            if name not in ("cpu", "to"):
                return original(*args, **kwargs)
            copy = original(*args, **kwargs).clone()  # on a CPU it is the tensor itself, which is the device's here
            self.watch.put_on_host(copy)
            return copy

        return call

    @staticmethod
    def _leaves(args: Any, kwargs: Any) -> bool:
        """Whether `to` would leave the device. A library says `x.to(y.device)`, which is the device of both."""
        by_object = not any(isinstance(given, str) for given in [*args, *kwargs.values()])
        library = not _is_ours(Path(sys._getframe(2).f_code.co_filename))
        return _names_the_cpu(args, kwargs) and not (by_object and library)

    def _set(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A number that is put where a mask is true is an argument of a kernel; at places, it is copied there first."""

        def call(tensor: Tensor, key: Any, value: Any) -> None:
            masked = isinstance(key, Tensor) and key.dtype == torch.bool
            if isinstance(value, Tensor) or self.watch.is_on_host(tensor):
                original(tensor, key, value)
            elif masked:
                tensor.masked_fill_(key.view(*key.shape, *[1] * (tensor.ndim - key.ndim)), value)
            else:
                places = any(isinstance(part, Tensor) for part in (key if isinstance(key, tuple) else (key,)))
                self.watch.note_wait("__setitem__", int(places))
                self._silenced(original)(tensor, key, value)

        return call

    def _made(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """On the host, unless a device is named."""
        silenced = self._silenced(original)

        def call(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("device") is not None:
                return original(*args, **kwargs)
            made = silenced(*args, **kwargs)
            self.watch.put_on_host(made)
            return made

        return call

    def _silenced(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Looks at the range of its numbers on a CPU only."""

        def call(*args: Any, **kwargs: Any) -> Any:
            before, self.silent = self.silent, True
            try:
                return original(*args, **kwargs)
            finally:
                self.silent = before

        return call


def is_free(func: Any, name: str) -> bool:
    """Views and allocations: nothing is launched. So are reads of the host, which are counted as waits."""
    if name in FREE or name in ("_local_scalar_dense", "lift_fresh"):
        return True
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def where() -> str:
    """The innermost line of the project, or of its tests, below which an operation happened."""
    for frame in reversed(traceback.extract_stack()[:-1]):
        path = Path(frame.filename)
        if path != Path(__file__) and _is_ours(path):
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return "?"


def _is_ours(path: Path) -> bool:
    """Of the project, and not of an environment that lies in its folder."""
    return path.is_relative_to(ROOT) and "site-packages" not in path.parts


def _names_the_cpu(args: Any, kwargs: Any) -> bool:
    named = [*args, *kwargs.values()]
    return any((isinstance(a, str) and a == "cpu") or (isinstance(a, torch.device) and a.type == "cpu") for a in named)


def _indices(args: Any) -> list[Any]:
    return list(args[1]) if len(args) > 1 and isinstance(args[1], list | tuple) else []


def _accumulates(func: Any, args: Any, kwargs: Any) -> bool:
    given = dict(zip([a.name for a in func._schema.arguments], args, strict=False)) | kwargs
    return bool(given.get("accumulate", False))


def _tensors(args: Any) -> list[Tensor]:
    if isinstance(args, Tensor):
        return [args]
    return [t for a in args for t in _tensors(a)] if isinstance(args, list | tuple) else []


def _dtype_of(result: Any) -> torch.dtype | None:
    found = _tensors(result)
    return found[0].dtype if found else None
