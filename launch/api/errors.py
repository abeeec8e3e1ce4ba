"""Errors of the Python interface: the sentences of the commands, in classes of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from data_shards.errors import LeaseHeldError, LeaseLostError, ShardError
from launch.errors import RunFailedError, one_sentence

P = ParamSpec("P")
T = TypeVar("T")


class FleximoeError(Exception):
    """Every error that is raised on purpose. Its text is one sentence: what, where, and what to do."""


class InputError(FleximoeError, ValueError):
    """What was given cannot be used: a recipe, a table, a path, a name."""


class RunError(FleximoeError, RuntimeError):
    """Something that was begun could not be finished: a run failed or was stopped, a storage is away."""


def translated(error: Exception) -> FleximoeError | None:
    """The error as callers of the interface see it; None for one that nobody expected, which is left as it is."""
    if isinstance(error, FleximoeError):
        return error
    if isinstance(error, RunFailedError | ShardError | OSError | LeaseHeldError | LeaseLostError | ArithmeticError):
        return RunError(one_sentence(error))
    if isinstance(error, ValueError) and str(error):
        return InputError(one_sentence(error))
    return None


def speaking(function: Callable[P, T]) -> Callable[P, T]:
    """A function whose expected errors are `FleximoeError`s; what they came from is in `__context__`."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            own = translated(error)
            if own is None or own is error:
                raise
            raise own from None

    return call
