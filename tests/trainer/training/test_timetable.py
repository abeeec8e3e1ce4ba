"""Which steps are evaluated, which saved, and which is the last, written down for a run of epochs of four steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from trainer.config.sections import TrainingConfig
from trainer.training.progress import Progress
from trainer.training.timetable import Timetable, steps_that_fit

STEPS_PER_EPOCH = 4
RECORDS_PER_STEP = 10


def timetable(validates: bool = True, **training: Any) -> Timetable:
    return Timetable(TrainingConfig.model_validate({"epochs": 3, **training}), STEPS_PER_EPOCH, validates)


def after(step: int, **more: Any) -> Progress:
    """Where a run is after `step` steps."""
    epoch, steps = divmod(step, STEPS_PER_EPOCH)
    return Progress(step=step, epoch=epoch, offset=steps * RECORDS_PER_STEP, **more)


@pytest.mark.parametrize(
    ("training", "steps"), [({}, 12), ({"max_steps": 7}, 7), ({"max_steps": 12}, 12), ({"max_steps": 100}, 12)]
)
def test_a_run_takes_its_epochs_and_no_more_than_max_steps(training, steps):
    assert timetable(**training).total_steps == steps


def test_minutes_end_a_run_before_its_epochs_do_and_never_before_what_was_made():
    table = replace(timetable(), fits=5)
    assert (table.total_steps, table.at_the_end(after(4)), table.at_the_end(after(5))) == (5, False, True)
    assert table.evaluation_due(after(5)) and not table.evaluation_due(after(3))
    assert replace(timetable(), fits=500).total_steps == 12
    # 20 steps took 30 s: in two minutes there are 80, in ten seconds those 20.
    assert (steps_that_fit(20, 30.0, 2.0), steps_that_fit(20, 30.0, 1 / 6)) == (80, 20)
    # Of the first steps only that they have used it up is known.
    assert (steps_that_fit(5, 59.0, 1.0), steps_that_fit(5, 61.0, 1.0)) == (None, 5)


@pytest.mark.parametrize(
    ("training", "evaluated"),
    [
        ({}, [4, 8, 12]),
        ({"max_steps": 7}, [4, 7]),
        ({"eval_every": 5}, [5, 10, 12]),
        ({"eval_every": 3, "max_steps": 7}, [3, 6, 7]),
        ({"eval_every": 100}, [12]),
        ({"eval_every": 5, "checkpoint": {"every": 2}}, [5, 10, 12]),
        ({"validates": False}, []),
        ({"validates": False, "eval_every": 5}, []),
    ],
)
def test_steps_that_are_evaluated(training, evaluated):
    table = timetable(**training)
    assert [n for n in range(1, table.total_steps + 1) if table.evaluation_due(after(n))] == evaluated


@pytest.mark.parametrize(
    ("training", "saved"),
    [
        ({}, [4, 8, 12]),
        ({"checkpoint": {"every": 5}}, [5, 10]),
        ({"checkpoint": {"every": 5}, "validates": False}, [5, 10]),
        ({"max_steps": 7}, [4]),
    ],
)
def test_steps_that_are_saved_whatever_else_happens(training, saved):
    table = timetable(**training)
    assert [n for n in range(1, table.total_steps + 1) if table.checkpoint_due(after(n))] == saved


def test_a_run_ends_after_its_steps_or_its_patience():
    patient, impatient = timetable(), timetable(early_stopping={"patience": 2})
    assert [n for n in range(1, 15) if patient.at_the_end(after(n))] == [12, 13, 14]
    for bad, ends in {0: False, 1: False, 2: True, 3: True}.items():
        assert impatient.at_the_end(after(5, bad_evaluations=bad)) is ends
        assert not patient.at_the_end(after(5, bad_evaluations=bad))


def test_a_run_that_had_ended_goes_on_with_a_longer_recipe():
    done = after(12, bad_evaluations=2, finished=True)
    assert timetable().at_the_end(done) and not timetable(epochs=4).at_the_end(done)
    assert timetable(epochs=4, early_stopping={"patience": 2}).at_the_end(done)
    assert not timetable(epochs=4, early_stopping={"patience": 3}).at_the_end(done)
