"""The families of learners that a baseline may be of: `trees` and `linear`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from trainer.baseline.learners.linear import best_linear
from trainer.baseline.learners.problem import Learned
from trainer.baseline.learners.task_model import Learner, Pair
from trainer.baseline.learners.trees import SETTINGS, averaged, grow

Family = Literal["trees", "linear"]
FAMILIES: tuple[Family, ...] = ("trees", "linear")
FEW = 4  # columns of a task that choose the setting of trees for all of them
MUCH = 3e7  # numbers times scores, above which one setting of trees is tried


def learner_of(family: Family, seed: int) -> Learner:
    """What learns the columns of a task."""
    return partial(_all_trees, seed=seed) if family == "trees" else _all_linear


def _all_linear(pairs: Sequence[Pair]) -> list[Learned]:
    return [best_linear(train, val) for train, val in pairs]


def _all_trees(pairs: Sequence[Pair], seed: int) -> list[Learned]:
    """Each column its own best setting; of many columns the one that is best for the first few, of much data the
    first."""
    settings = [setting for setting in SETTINGS if setting == SETTINGS[0] or not _much(pairs)]
    tried = [[grow(*pair, setting, seed) for pair in pairs[:FEW]] for setting in settings]
    if len(pairs) <= FEW:
        found = [min(column, key=lambda grown: grown.loss) for column in zip(*tried, strict=True)]
    else:
        best = min(range(len(settings)), key=lambda number: sum(grown.loss for grown in tried[number]))
        found = [*tried[best], *(grow(*pair, settings[best], seed) for pair in pairs[FEW:])]
    return [averaged(*pair, grown, seed) for pair, grown in zip(pairs, found, strict=True)]


def _much(pairs: Sequence[Pair]) -> bool:
    """Whether growing takes many minutes: by the numbers in the tables, and the trees that an iteration grows."""
    scores = [len(set(train.y_B)) if train.kind == "classes" else 1 for train, _ in pairs[:FEW]]
    return sum(train.x_BX.size * number for (train, _), number in zip(pairs, scores, strict=False)) > MUCH
