"""One task answered: a scorer for each of its columns, put together to the logits that models give.

yes and no: one scorer. labels: one each. classes: one with a score for each class that training has seen (of two the
log odds of the second). numbers: one each, of the number in training's deviations from its mean. survival: one of yes
and no over intervals (`problem.Periods`).

Shapes: B samples, X columns, C logits, t targets, K intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_shards import TaskSpec
from trainer.baseline.learners.forest import Forest
from trainer.baseline.learners.linear import Linear
from trainer.baseline.learners.problem import Array, Constant, Kind, Learned, Periods, Problem, Scorer

Pair = tuple[Problem, Problem]  # to learn from, and to choose by
Learner = Callable[[Sequence[Pair]], list[Learned]]
SCORERS: dict[str, Any] = {kind.__name__: kind for kind in (Forest, Linear, Constant)}
AT_ONCE = 4096  # samples, of which each interval is a row


@dataclass
class TaskModel:
    """What answers one task.

    Attributes:
        seen: of classes, the numbers of those that training has. scale: of numbers, mean and deviation of each in
            training. base_K: of survival, the log odds of each interval in training.
    """

    task: TaskSpec
    scorers: list[Scorer]
    seen: tuple[int, ...] = ()
    scale: list[tuple[float, float]] = field(default_factory=list)
    base_K: tuple[float, ...] = ()

    def logits(self, x_BX: np.ndarray) -> Tensor:
        """float32 (B, C)."""
        pieces = [self._some(x_BX[start : start + AT_ONCE]) for start in range(0, len(x_BX), AT_ONCE)]
        return torch.from_numpy(np.concatenate([np.empty((0, self.task.dim)), *pieces]).astype(np.float32))

    def _some(self, x_BX: np.ndarray) -> Array:
        if self.task.kind == "survival":
            periods = Periods(self.task.edges, np.array(self.base_K))
            return self.scorers[0].scores(periods.every(x_BX)).reshape(len(x_BX), -1)
        score_BC = np.concatenate([scorer.scores(x_BX) for scorer in self.scorers], axis=1)
        if self.task.kind == "regression":
            mean_C, std_C = np.array(self.scale).T
            return score_BC * std_C + mean_C
        return self._classes(score_BC) if self.task.kind == "multiclass" else score_BC

    def _classes(self, score_BS: Array) -> Array:
        """Log probabilities; a class that training has not seen is as rare as the rarest float32 can say safely."""
        if len(self.seen) == 2:
            score_BS = np.concatenate([np.zeros_like(score_BS), score_BS], axis=1)
        known_BS = score_BS - np.logaddexp.reduce(score_BS, axis=1, keepdims=True)
        whole_BC = np.full((len(score_BS), self.task.dim), UNSEEN)
        whole_BC[:, list(self.seen)] = known_BS
        return whole_BC

    def described(self) -> dict[str, Any]:
        """All but the arrays, as plain values."""
        kinds = [type(scorer).__name__ for scorer in self.scorers]
        return {"scorers": kinds, "seen": list(self.seen), "scale": self.scale, "base": list(self.base_K)}

    def arrays(self) -> dict[str, np.ndarray]:
        """The scorers' arrays by number and name."""
        return {f"{n}.{name}": a for n, scorer in enumerate(self.scorers) for name, a in scorer.arrays().items()}

    @staticmethod
    def of(task: TaskSpec, described: dict[str, Any], arrays: dict[str, np.ndarray]) -> TaskModel:
        """Inverse of `described` and `arrays`."""
        scorers = []
        for number, kind in enumerate(described["scorers"]):
            own = {name.partition(".")[2]: a for name, a in arrays.items() if name.startswith(f"{number}.")}
            scorers.append(SCORERS[kind].of(own))
        scale = [(float(mean), float(std)) for mean, std in described["scale"]]
        return TaskModel(task, scorers, tuple(described["seen"]), scale, tuple(described["base"]))


UNSEEN = -20.0


@dataclass
class Answer:
    """A task's model, what was chosen for each of its columns, and what was noticed, in sentences."""

    model: TaskModel
    chosen: list[dict[str, Any]]
    notes: list[str]


def learn(
    task: TaskSpec, train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray], learner: Learner
) -> Answer:
    """A model of one task.

    Args:
        train, val: tables (B, X), and targets (B, t) with NaN for no label.

    Raises:
        ValueError: no label in training or in validation.
    """
    for part, (_, target_Bt) in (("train", train), ("val", val)):
        if np.isnan(target_Bt).any(axis=1).all() if task.kind == "survival" else np.isnan(target_Bt).all():
            what = "to learn from" if part == "train" else "by which settings are chosen"
            raise ValueError(f"part {part} has no label of task {task.name}, {what}")
    notes: list[str] = []
    model = TaskModel(task, [])
    pairs = _pairs(model, train, val, notes)
    learnable = [number for number, (own, other) in enumerate(pairs) if _can_learn(own, other)]
    learned = dict(zip(learnable, learner([pairs[number] for number in learnable]), strict=True))
    for number in range(len(pairs)):
        if number not in learned:
            name = task.classes[number] if task.kind == "multilabel" else str(number)
            where = task.name if len(pairs) == 1 else f"{task.name}.{name}"
            notes.append(
                f"{where} has one answer in training or no label in validation, so the same is said of every record"
            )
    model.scorers = [
        learned[number].scorer if number in learned else _constant(own) for number, (own, _) in enumerate(pairs)
    ]
    chosen = [{**own.chosen, "val_loss": own.loss} for own in learned.values()]
    return Answer(model, chosen, notes)


def _can_learn(train: Problem, val: Problem) -> bool:
    return len(np.unique(train.y_B)) > 1 and len(val.y_B) > 0


def _constant(problem: Problem) -> Constant:
    """The rate with half a row added to either side, or the mean."""
    total, positive = len(problem.y_B), problem.y_B.sum()
    if problem.kind == "number":
        return Constant(np.array([positive / max(total, 1)]))
    if problem.kind == "classes":  # one class only
        return Constant(np.zeros(1))
    return Constant(np.array([np.log((positive + 0.5) / (total - positive + 0.5))]))


def _pairs(
    model: TaskModel, train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray], notes: list[str]
) -> list[Pair]:
    """One problem a column, of training and of validation; what the model has to know of training is set."""
    task = model.task
    if task.kind == "survival":
        known = [(x[~np.isnan(y).any(axis=1)], y[~np.isnan(y).any(axis=1)]) for x, y in (train, val)]
        periods = Periods.of(task.edges, known[0][1])
        model.base_K = tuple(periods.base_K.tolist())
        return [(periods.problem(*known[0]), periods.problem(*known[1]))]
    columns = [(_labelled(*train, number), _labelled(*val, number)) for number in range(train[1].shape[1])]
    if task.kind == "multiclass":
        return [_class_pair(model, *columns[0], notes)]
    if task.kind == "regression":
        return [_number_pair(model, *column) for column in columns]
    return [(Problem("binary", *own), Problem("binary", *other)) for own, other in columns]


def _labelled(x_BX: np.ndarray, target_Bt: np.ndarray, number: int) -> tuple[np.ndarray, Array]:
    known_B = ~np.isnan(target_Bt[:, number])
    return x_BX[known_B], target_Bt[known_B, number].astype(np.float64)


def _class_pair(
    model: TaskModel, train: tuple[np.ndarray, Array], val: tuple[np.ndarray, Array], notes: list[str]
) -> Pair:
    seen = np.unique(train[1])
    model.seen = tuple(seen.astype(int).tolist())
    known_B = np.isin(val[1], seen)
    if not known_B.all():
        notes.append(
            f"{model.task.name}: {int((~known_B).sum())} validation samples are of classes that training has not, and "
            "choose nothing"
        )
    kind: Kind = "binary" if len(seen) == 2 else "classes"
    own = Problem(kind, train[0], np.searchsorted(seen, train[1]).astype(np.float64))
    return own, Problem(kind, val[0][known_B], np.searchsorted(seen, val[1][known_B]).astype(np.float64))


def _number_pair(model: TaskModel, train: tuple[np.ndarray, Array], val: tuple[np.ndarray, Array]) -> Pair:
    mean, std = (float(train[1].mean()), float(train[1].std()) or 1.0) if len(train[1]) else (0.0, 1.0)
    model.scale.append((mean, std))
    own, other = (Problem("number", x, (y - mean) / std) for x, y in (train, val))
    return own, other
