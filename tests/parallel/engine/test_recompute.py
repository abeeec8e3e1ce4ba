"""Recomputation frees what it is to free, and changes no bit."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from parallel import Engine, MoEConfig, MoELayer, ParallelConfig, create_mesh, init_distributed
from tests.ranks import run_ranks

pytestmark = pytest.mark.together
DIM, TOKENS, LAYERS = 32, 512, 8


class Peak(TorchDispatchMode):
    """Most bytes of tensors that were alive at once, of those that operations made."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._known:
                    self._known.add(key)
                    self.now += size
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._free, key, size)
        return made


class Block(nn.Module):
    def __init__(self, layer: int, moe: MoEConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.moe = MoELayer(DIM, moe, 1, layer)
        self.dense = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM), nn.Dropout(0.1))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x_ND: Tensor, modality_N: Tensor) -> Tensor:
        x_ND = x_ND + self.dropout(self.moe(self.norm(x_ND), modality_N)[0])
        return x_ND + self.dense(x_ND)


class Stack(nn.Module):
    def __init__(self, recompute: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.recompute = recompute
        moe = MoEConfig(experts=4, top_k=2, hidden=64)
        self.embed = nn.Linear(4, DIM)
        self.blocks = nn.ModuleList(Block(layer, moe) for layer in range(LAYERS))
        self.head = nn.Linear(DIM, 1)

    def stages(self) -> list[list[nn.Module]]:
        return [*([block] for block in self.blocks), [self.head]]

    def forward(self, x: Tensor) -> Tensor:
        x_ND, modality_N = self.embed(x), torch.zeros(len(x), dtype=torch.int64)
        for block in self.blocks:
            if self.recompute:
                x_ND = checkpoint(block, x_ND, modality_N, use_reentrant=False)
            else:
                x_ND = block(x_ND, modality_N)
        return self.head(x_ND)


def _train(recompute: bool) -> tuple[int, list[float], list[Any]]:
    mesh = create_mesh(ParallelConfig(), MoEConfig(experts=4, top_k=2))
    engine = Engine(Stack(recompute), mesh, lr=1e-2, clip=1.0)
    x = torch.randn(TOKENS, 4, generator=torch.Generator().manual_seed(1))
    losses, most = [], 0
    for step in range(3):
        torch.manual_seed(step)
        with Peak() as peak:
            loss = engine(x).square().mean()
            losses.append(loss.item())
            engine.backward(loss)
        assert engine.step()
        most = max(most, peak.most)
    weights = [parameter.detach().numpy().copy() for parameter in engine.module.parameters()]
    engine.close()
    return most, losses, weights


def test_recomputed_layers_are_freed_one_by_one_and_change_no_bit() -> None:
    """8 layers with dropout: one is alive at a time, and the inputs of all."""
    (kept, losses, weights), (freed, losses_2, weights_2) = run_ranks(_both_ways, 1)[0]
    assert losses == losses_2
    for a, b in zip(weights, weights_2, strict=True):
        np.testing.assert_array_equal(a, b)
    assert freed <= 0.35 * kept, f"{freed / kept:.0%}"


def _both_ways(rank: int, world: int) -> list[tuple[int, list[float], list[Any]]]:
    init_distributed("cpu", 60)
    return [_train(recompute) for recompute in (False, True)]


def test_what_keeps_ranks_in_step_holds_no_activations() -> None:
    """Outputs of layers live only as long as what follows needs them: with recomputation, nowhere."""
    before, after = run_ranks(_held_outputs, 1)[0]
    assert before == (LAYERS, 0) and after == (2 * LAYERS, 0)


def _held_outputs(rank: int, world: int) -> list[tuple[int, int]]:
    """Outputs that layers made, and how many of them are held: before and after the backward pass."""
    init_distributed("cpu", 60)
    mesh = create_mesh(ParallelConfig(), MoEConfig(experts=4, top_k=2))
    engine = Engine(Stack(True), mesh, lr=1e-2)
    outputs: list[weakref.ref[Any]] = []
    for block in engine.module.blocks:
        block.moe.register_forward_hook(
            lambda module, args, output: outputs.append(weakref.ref(output[0].untyped_storage()))
        )
    loss = engine(torch.randn(TOKENS, 4)).square().mean()
    found = []
    for backward in (False, True):
        if backward:
            engine.backward(loss)
        found.append((len(outputs), sum(output() is not None for output in outputs)))
    return found
