"""What a tracker is told, as plain dictionaries: an operation each, with the time in ms since the epoch.

They wait in a queue, and as JSON in a spool, where a later version of this code may find them: keys stay the same.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Params(TypedDict):
    op: Literal["params"]
    values: dict[str, str]
    time: int


class Metrics(TypedDict):
    op: Literal["metrics"]
    values: dict[str, float]
    step: int
    time: int


class File(TypedDict):
    """A local file, to be kept under its own name in a folder of the run; None is the run's top."""

    op: Literal["file"]
    path: str
    folder: str | None
    time: int


class Dataset(TypedDict):
    op: Literal["dataset"]
    name: str
    url: str
    digest: str
    context: str
    time: int


class Model(TypedDict):
    """What a run has made: where its checkpoint is, and, where a version is registered, a folder MLflow can use."""

    op: Literal["model"]
    uri: str
    about: dict[str, str]
    metrics: dict[str, float]
    time: int
    export: NotRequired[str]


class Tags(TypedDict):
    op: Literal["tags"]
    values: dict[str, str]
    time: int


class End(TypedDict):
    op: Literal["status"]
    status: Status
    time: int


class Restart(TypedDict):
    """What follows is of another process that continues the run: it may repeat steps that stand before this."""

    op: Literal["restart"]
    time: int


class Replay(TypedDict):
    """Points of up to this step are to be sent from the run's own lines, where they are not there yet: the queue of a
    process that was killed is lost with it."""

    op: Literal["replay"]
    step: int
    time: int


Operation = Params | Metrics | File | Dataset | Model | Tags | End | Restart | Replay
