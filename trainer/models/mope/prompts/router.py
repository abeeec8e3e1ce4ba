"""The multimodal router: which mixture of prompt experts a sample gets at one site (MoPE, section on the router).

A query joins what the host sees there (pooled tokens, a few dimensions) with what the other modality says (context).
It is compared with frozen orthonormal keys, so that experts are told apart from the first step on and cannot drift
together: only the projections learn. Noise is for training only, so an evaluation repeats to the last bit.

Shapes: B samples, D width of the host, X width of the context, Q width of a query, K experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def orthonormal_keys(width: int, experts: int, generator: torch.Generator) -> Tensor:
    """(Q, K) with orthonormal columns.

    Raises:
        ValueError: more experts than dimensions: no such columns exist.
    """
    if experts > width:
        raise ValueError(
            f"{experts} prompt experts need {experts} orthogonal routing keys, but a query has only {width} "
            "dimensions: raise mope.cross_dim or lower mope.k"
        )
    return torch.linalg.qr(torch.randn(width, experts, generator=generator))[0].contiguous()


class Router(nn.Module):
    """(host's pooled state, context) -> weights of K experts.

    Args:
        parts: both, cross, intra, or random (projections are not trained).
        noise: deviation of the logits' noise in training.
        normalise: whether queries have unit length; without, routing starts nearly one-hot.
    """

    def __init__(
        self,
        width: int,
        context: int,
        experts: int,
        generator: torch.Generator,
        parts: str = "both",
        intra: int = 2,
        cross: int = 8,
        tau: float = 0.1,
        noise: float = 1 / 256,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        self.tau, self.noise, self.normalise = tau, noise, normalise
        self.intra = nn.Linear(width, intra) if parts != "cross" else None
        self.cross = nn.Linear(context, cross) if parts != "intra" else None
        queries = intra * (parts != "cross") + cross * (parts != "intra")
        self.register_buffer("keys_QK", orthonormal_keys(queries, experts, generator))
        self.keys_QK: Tensor
        if parts == "random":
            self.requires_grad_(False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Keys stay in float32: rounded ones would not be orthogonal."""
        keys_QK = self.keys_QK
        super()._apply(fn, recurse)
        self.keys_QK = keys_QK.to(self.keys_QK.device)
        return self

    def forward(self, pooled_BD: Tensor, context_BX: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K) float32 weights, whose rows sum to 1; and the same without noise, for the importance loss."""
        queries = [] if self.intra is None else [self.intra(pooled_BD)]
        queries += [] if self.cross is None else [self.cross(context_BX)]
        return route(torch.cat(queries, -1), self.keys_QK, self.tau, self.noise * self.training, self.normalise)


def route(query_BQ: Tensor, keys_QK: Tensor, tau: float, noise: float, normalise: bool) -> tuple[Tensor, Tensor]:
    """softmax(q K / tau + noise) in float32, and without noise; keys may also be (B, Q, K), a set for each row."""
    query_BQ = query_BQ.float()
    if normalise:
        query_BQ = functional.normalize(query_BQ, dim=-1)
    logits_BK = (query_BQ[:, None, :] @ keys_QK.float())[:, 0] / tau
    quiet_BK = logits_BK.softmax(-1)
    if not noise:
        return quiet_BK, quiet_BK
    return (logits_BK + noise * torch.randn_like(logits_BK)).softmax(-1), quiet_BK


def routing_entropy(weights_BK: Tensor) -> Tensor:
    """(B,) entropy of the weights over that of a uniform mixture: 0 = one expert, 1 = all alike."""
    experts = weights_BK.shape[-1]
    if experts == 1:
        return weights_BK.new_zeros(len(weights_BK))
    entropy_B = -(weights_BK * weights_BK.clamp_min(1e-30).log()).sum(-1)
    return entropy_B / torch.tensor(float(experts)).log().to(entropy_B)
