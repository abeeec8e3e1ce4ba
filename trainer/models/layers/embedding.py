"""Tables of learned rows whose gradient is exact: each row's is added up in fp32 and rounded once.

torch's own adds the gradients of a row's uses in the precision of the table, on a GPU in any order.
"""

from __future__ import annotations

from torch import Tensor, nn

from parallel.moe.segments import look_up


class Embedding(nn.Embedding):
    """`nn.Embedding` without `max_norm`, sparse gradients and frequencies."""

    def forward(self, input: Tensor) -> Tensor:
        row_ND = look_up(self.weight, input.reshape(-1), self.padding_idx)
        return row_ND.view(*input.shape, self.embedding_dim)


def make_embeddings_exact(model: nn.Module) -> None:
    """In place, those of a model that somebody else has written; names and weights stay as they are."""
    for module in model.modules():
        if type(module) is nn.Embedding and module.max_norm is None and not module.scale_grad_by_freq:
            module.__class__ = Embedding
