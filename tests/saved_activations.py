"""What a forward pass keeps for the backward pass: the measure of the cost model's activations."""

from __future__ import annotations

from typing import Any

import torch


def saved_bytes(network: Any, records: Any) -> int:
    """Bytes that `network(records)` saves for its backward pass, beside parameters and buffers."""
    known = {p.untyped_storage().data_ptr() for p in [*network.parameters(), *network.buffers()]}
    saved: dict[int, int] = {}
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # or its address might be given to another one
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(records)
    return sum(saved.values())
