"""Fragments: this rank's part of the optimizer's state, addressed by logical parameter.

ZeRO-1 and ZeRO-2 give every rank one flat slice of each parameter group: fp32 master weights, and Adam's two moments of
the same length. A fragment is the piece of such a slice that belongs to one parameter, with its place in the *logical*
parameter: dense ones as they are, experts as (E, ...) by global id. Every logical element lies in exactly one fragment
of exactly one rank, so a checkpoint is the union of what the ranks write, without a collective, and fits any other
number of ranks, expert-parallel degree or ZeRO stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Fragment:
    """`numel` elements of parameter `name` (full logical `shape`), from flat offset `start`.

    master, exp_avg and exp_avg_sq are 1-D fp32 views of the live optimizer state: writing into them changes it; so is
    `average`, of the master weights, where the engine keeps one.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    numel: int
    master: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    average: Tensor | None = None


def collect_fragments(
    zero: Any,
    shapes: dict[str, tuple[int, ...]],
    first_expert: dict[str, int],
    averages: Sequence[Tensor] | None = None,
) -> list[Fragment]:
    """Fragments of this rank from DeepSpeed's ZeRO-1/2 optimizer.

    Args:
        zero: `DeepSpeedZeroOptimizer`, with moments created.
        shapes: full logical shape of every parameter.
        first_expert: for parameters that hold experts, the global id of the first one on this rank.
        averages: of the groups' slices of master weights.
    """
    fragments = []
    slices = zero.single_partition_of_fp32_groups
    beside: Sequence[Tensor | None] = averages or [None] * len(slices)
    for flat, group, average in zip(slices, zero.bit16_groups, beside, strict=True):
        moments = zero.optimizer.state[flat]
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is None:  # nothing of this parameter is in this rank's slice
                continue
            name = zero.param_names[parameter]
            # This rank's tensor begins at its first expert, the logical one at expert 0.
            shift = first_expert[name] * parameter[0].numel() if name in first_expert else 0
            here, in_parameter = mapping.hp_fragment_address, mapping.lp_fragment_address
            # Views of the live state, not copies: restoring writes through them.
            views = [
                t.detach().narrow(0, here.start, here.numel) for t in (flat, moments["exp_avg"], moments["exp_avg_sq"])
            ]
            if average is not None:
                views.append(average.narrow(0, here.start, here.numel))
            fragments.append(Fragment(name, shapes[name], shift + in_parameter.start, here.numel, *views))
    return fragments
