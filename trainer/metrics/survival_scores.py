"""How good predicted survival is: who comes first, how close the curves are, and whether they mean what they say.

Shapes: B records, K intervals, T usable edges.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from data_shards import TaskSpec
from trainer.metrics.censored import (
    Array,
    Bools,
    Calibration,
    Concordance,
    calibration,
    censoring_weights,
    integrated_brier,
)
from trainer.metrics.survival import edges_of, risk, survival_at_edges

SHARES = (0.25, 0.5, 0.75)  # of the usable edges, at which calibration is looked at


@dataclass(frozen=True)
class Followed:
    """Labelled records of a part with what was predicted of them.

    Edges are usable below the longest time of the part: beyond it nobody is left who could tell.
    """

    time_B: Array
    seen_B: Bools
    risk_B: Array
    edge_T: Array
    survival_BT: Array

    def calibrations(self) -> dict[float, Calibration]:
        """By a few edges, from early to late."""
        places = sorted({int(share * len(self.edge_T)) for share in SHARES}) if len(self.edge_T) else []
        return {
            float(self.edge_T[place]): calibration(
                self.time_B, self.seen_B, self.survival_BT[:, place], float(self.edge_T[place])
            )
            for place in places
        }


def followed(task: TaskSpec, logits_BK: Tensor, target_B2: Tensor) -> Followed:
    """Of labelled records, of which there is one at least."""
    known_B = ~target_B2.isnan().any(dim=1)
    logits_BK, target_B2 = logits_BK[known_B].double(), target_B2[known_B].double()
    time_B, seen_B = target_B2[:, 0].numpy(), target_B2[:, 1].numpy() == 1
    edge_K = edges_of(task).numpy()
    usable = edge_K < time_B.max()
    survival_BT = survival_at_edges(logits_BK).numpy()[:, usable]
    return Followed(time_B, seen_B, risk(task, logits_BK).numpy(), edge_K[usable], survival_BT)


def weighted_measures(own: Followed) -> dict[str, Callable[[Array], Array]]:
    """Measures as functions of weights (R, B), with the chances of censoring as the whole part gives them.

    concordance: Harrell's, of the risk. concordance_ipcw: Uno's, of what was seen before the last usable edge.
    integrated_brier: from the first to the last usable edge, of two. Those that labels do not define are left out.
    """
    found: dict[str, Callable[[Array], Array]] = {}
    first, latest = own.time_B[own.seen_B].min(initial=np.inf), own.time_B.max()
    if first < latest:
        found["concordance"] = Concordance(own.time_B, own.seen_B, own.risk_B)
    if len(own.edge_T) and first < own.edge_T[-1]:
        factor_B = np.where(own.time_B < own.edge_T[-1], censoring_weights(own.time_B, own.seen_B), 0.0) ** 2
        found["concordance_ipcw"] = Concordance(own.time_B, own.seen_B, own.risk_B, factor_B)
    if len(own.edge_T) > 1:
        error_B = integrated_brier(own.time_B, own.seen_B, own.survival_BT, own.edge_T)
        found["integrated_brier"] = weighted_mean(error_B)
    return found


def weighted_mean(value_B: Array) -> Callable[[Array], Array]:
    """NaN where no record has a weight."""

    def mean(weight_RB: Array) -> Array:
        total_R = weight_RB.sum(axis=1)
        return np.divide(weight_RB @ value_B, total_R, out=np.full_like(total_R, np.nan), where=total_R > 0)

    return mean


def survival_scores(task: TaskSpec, logits_BK: Tensor, target_B2: Tensor) -> dict[str, float]:
    """`weighted_measures` of the records as they are, and ece: the mean gap to Kaplan-Meier at a few edges."""
    own = followed(task, logits_BK, target_B2)
    once_1B = np.ones((1, len(own.time_B)))
    scores = {name: float(measure(once_1B)[0]) for name, measure in weighted_measures(own).items()}
    errors = [found.error for found in own.calibrations().values()]
    return scores | ({"ece": float(np.mean(errors))} if errors else {})


def survival_names(task: TaskSpec, values: Sequence[Collection[float]]) -> set[str]:
    """Names of `survival_scores`, of the earliest times that were seen and the longest times (see `PartLabels`)."""
    first, latest = min(values[0], default=np.inf), max(values[1], default=-np.inf)
    usable = [edge for edge in edges_of(task).tolist() if edge < latest]
    names = {"concordance"} if first < latest else set()
    names |= {"concordance_ipcw"} if usable and first < usable[-1] else set()
    names |= {"integrated_brier"} if len(usable) > 1 else set()
    return names | ({"ece"} if usable else set())
