"""From the loader to the model: what a host must know of a batch is worked out on the CPU, before the copy.

A model says it in `lay_out(batch)`: a tree of dataclasses that holds small tensors (whose tokens follow each other,
which rows are absent) and the numbers that sizes of tensors are made of. `stage` copies batch and tree from
page-locked memory, one copy each, on a stream of their own: the host goes on, and asks a device for nothing. A model
that meets a batch without a plan lays it out itself, from what the batch was on the CPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from data_shards import Batch

ALIGN = 64  # bytes; views of any type may begin there
Tree = TypeVar("Tree")


def plan_of(model: Any, batch: Batch) -> Any:
    """What `model.lay_out` says of the batch, on the batch's device."""
    if batch.plan is not None:
        return batch.plan
    return to_device(model.lay_out(batch.on_host()), batch.device)


def to_device(tree: Tree, device: torch.device) -> Tree:
    """A tree of dataclasses, tuples, lists and dicts with its CPU tensors moved as one copy; nobody waits."""
    if device.type == "cpu":
        return tree
    tensors = {id(leaf): leaf for leaf in _leaves(tree)}
    starts, size = [], 0
    for tensor in tensors.values():
        starts.append(size)
        size += -(-tensor.nbytes // ALIGN) * ALIGN
    buffer = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for start, tensor in zip(starts, tensors.values(), strict=True):
        _part(buffer, start, tensor).copy_(tensor)
    moved = buffer.to(device, non_blocking=True)
    found = {key: _part(moved, start, tensor) for start, (key, tensor) in zip(starts, tensors.items(), strict=True)}
    return _rebuilt(tree, found)  # type: ignore[no-any-return]


def _part(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    return buffer[start : start + like.nbytes].view(like.dtype).view(like.shape)


def _leaves(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
        return
    for child in _children(tree).values():
        yield from _leaves(child)


def _children(tree: Any) -> dict[Any, Any]:
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    if isinstance(tree, dict):
        return tree
    return dict(enumerate(tree)) if isinstance(tree, tuple | list) else {}


def _rebuilt(tree: Any, moved: dict[int, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return moved[id(tree)]
    children = {key: _rebuilt(child, moved) for key, child in _children(tree).items()}
    if not children:
        return tree
    if isinstance(tree, dict):
        return children
    return type(tree)(children.values()) if isinstance(tree, tuple | list) else dataclasses.replace(tree, **children)


@dataclasses.dataclass(frozen=True)
class Staged:
    """A batch on its way to the device; `host` is what it was on the CPU."""

    host: Batch
    _moved: Batch
    _copied: torch.cuda.Event | None

    def arrived(self) -> Batch:
        """The batch for use on the device's current stream, which waits for the copy; the host does not."""
        if self._copied is not None:
            stream = torch.cuda.current_stream(self._moved.device)
            stream.wait_event(self._copied)
            # Made on the stream of copies: its memory must not be used again before this stream is done with it.
            for tensor in (self._moved.index_B, *_leaves(self._moved.plan)):
                tensor.record_stream(stream)
        return self._moved


class Stage:
    """Where batches of one model wait for their turn, already on the model's device or on their way to it."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model, self.device = model, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Staged:
        """Lay out a batch of the CPU, and start its copy."""
        lay_out = getattr(self.model, "lay_out", None)
        plan = lay_out(batch) if lay_out is not None else None
        if self._stream is None:
            moved = batch.to(self.device)
            return Staged(batch, dataclasses.replace(moved, plan=to_device(plan, self.device)), None)
        with torch.cuda.stream(self._stream):
            moved = batch.pin_memory().to(self.device, non_blocking=True)
            moved.plan = to_device(plan, self.device)
            return Staged(batch, moved, self._stream.record_event())
