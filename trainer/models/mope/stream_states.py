"""What a head may read of a FuseMoE host beside the pooled vector: every modality's state at every depth.

The pooling was learned for the host's own task, and its few queries keep little else. What another task needs is often
still there, in the streams and in earlier layers, and linear layers read it at no cost in frozen weights (Head2Toe,
arXiv 2201.03529; here with a mean over a stream's tokens, and without selection).

Shapes: B samples, M modalities, Q present pairs (sample, modality), N tokens, D width, X width of the pooled vector.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trainer.models.mope.pairs import Pairs


def states_width(layers: int, modalities: int, dim: int) -> int:
    """Number of values that `StreamStates` adds to the pooled vector."""
    return (layers + 1) * modalities * dim


class StreamStates:
    """Collects the streams of one batch: call it with the tokens before the first and after every block."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self._found: list[Tensor] = []

    def __call__(self, x_ND: Tensor) -> None:
        """Mean token of every present pair, at unit variance: depths differ in scale. What is absent is zero."""
        pairs = self.pairs
        state_QD = functional.layer_norm(pairs.pooled(x_ND), x_ND.shape[1:])
        state_BMD = state_QD.new_zeros(*pairs.present_BM.shape, x_ND.shape[1])
        self._found.append(state_BMD.index_put((pairs.sample_Q, pairs.modality_Q), state_QD).flatten(1))

    def beside(self, pooled_BX: Tensor) -> Tensor:
        """(B, X + `states_width`): the pooled vector, each query's part at unit variance, then all that was seen."""
        dim = self._found[0].shape[1] // self.pairs.present_BM.shape[1]
        parts_BLD = pooled_BX.unflatten(1, (-1, dim))
        return torch.cat([functional.layer_norm(parts_BLD, (dim,)).flatten(1), *self._found], 1)
