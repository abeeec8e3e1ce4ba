"""When a run evaluates, saves and ends, as functions of where it is and of its recipe."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config.sections import TrainingConfig
from trainer.training.early_stopping import out_of_patience
from trainer.training.progress import Progress

PACED = (1, 2, 5, 10, 20)  # steps after which a run of so many minutes looks at the clock, beside evaluations
KNOWN_AFTER = PACED[-1]  # steps, after which their time is known well enough


@dataclass(frozen=True)
class Timetable:
    """What is due after a step. An epoch has ended where the offset is 0: the next one has begun.

    Args:
        steps_per_epoch: optimiser steps of one pass over the training part. validates: whether there is a validation
            part; without one nothing is ever evaluated. fits: steps that fit into `training.minutes`, once it is known.
    """

    training: TrainingConfig
    steps_per_epoch: int
    validates: bool
    fits: int | None = None

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run: all epochs, or `max_steps`, or what fits, if that is less."""
        limits = (self.training.epochs * self.steps_per_epoch, self.training.max_steps, self.fits)
        return min(limit for limit in limits if limit is not None)

    def evaluation_due(self, progress: Progress) -> bool:
        """As often as `eval_every` says, and at the last step."""
        every = self.training.eval_every
        if not self.validates:
            return False
        if progress.step >= self.total_steps:
            return True
        return progress.offset == 0 if every == "epoch" else progress.step % every == 0

    def checkpoint_due(self, progress: Progress) -> bool:
        """As often as `checkpoint.every` says, or each epoch. That evaluations and the end save, too, is the loop's."""
        every = self.training.checkpoint.every
        return progress.step % every == 0 if every is not None else progress.offset == 0

    def at_the_end(self, progress: Progress) -> bool:
        """By the recipe as it is now: a run that had ended goes on if it is given more epochs, steps or patience."""
        return out_of_patience(self.training.early_stopping, progress) or progress.step >= self.total_steps


def steps_that_fit(step: int, seconds: float, minutes: float) -> int | None:
    """Steps of a whole run of so many minutes, of which `step` took `seconds`; at least those that were made.

    None: it is too early to say; but of no time nothing is left.
    """
    if step < KNOWN_AFTER:
        return step if seconds >= minutes * 60 else None
    return max(step, int(step * minutes * 60 / max(seconds, 1e-9)))
