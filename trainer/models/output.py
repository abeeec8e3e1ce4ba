"""What every model gives for a batch."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from parallel import RoutingStats


@dataclass(frozen=True)
class Fused:
    """Output of a model: float32 logits (B, C) per task, routing sums per block, the pooled vector.

    `losses` are further terms of the loss, with their coefficients, the same value on every rank and with gradients
    for this rank's share only (as balance losses); `experts` are weights of prompt experts (B, K) by site, NaN for
    records without the site's modality; `empty` names terms of `losses` that no record of any rank had something for,
    whose value is 0; `measures` are numbers (B,) of each record, NaN for none, whose means are
    metrics; `members` are logits (K, B, C) of a task's head of several members, each of which learns for itself.
    """

    logits: dict[str, Tensor]
    routing: list[RoutingStats]
    pooled_BX: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    experts: dict[str, Tensor] = field(default_factory=dict)
    measures: dict[str, Tensor] = field(default_factory=dict)
    empty: frozenset[str] = frozenset()
    members: dict[str, Tensor] = field(default_factory=dict)
