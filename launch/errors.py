"""Errors of the command line: what the user reads, and the exit code."""

from __future__ import annotations

import signal

from data_shards.errors import JobError, LeaseHeldError, PathError
from trainer.config.errors import RecipeError


class UsageError(ValueError):
    """The command was not used as it can be. The text is one sentence for the user."""


class RunFailedError(RuntimeError):
    """A run ended without a result. The text is for the user; `stopped_by` is the signal if one was the reason."""

    def __init__(self, message: str, stopped_by: int | None = None) -> None:
        super().__init__(message)
        self.stopped_by = stopped_by


def exit_code(error: BaseException) -> int:
    """2 for what the user can correct on the command line or in the recipe, 128 + signal if stopped, else 1."""
    if isinstance(error, UsageError | RecipeError | PathError | LeaseHeldError | JobError):
        return 2
    if isinstance(error, KeyboardInterrupt):
        return 128 + (error.args[0] if error.args else signal.SIGINT)
    if isinstance(error, RunFailedError) and error.stopped_by:
        return 128 + error.stopped_by
    return 1


def one_sentence(error: BaseException) -> str:
    """The error on one line. Types that are raised with a text for people speak for themselves."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError | RuntimeError | ArithmeticError) and text:
        return text
    return f"{type(error).__name__}: {text} (unexpected; --debug shows where)"
