"""An ensemble as one file of its run's folder: who its members are, and what each counts. They stay where they are."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data_shards import TaskSpec
from data_shards.paths import absolute_url
from trainer.run_folder import ENSEMBLE, exists, read_json, write_json

FORMAT = "fleximoe-ensemble-1"


@dataclass(frozen=True)
class Member:
    """One of the models.

    Attributes:
        url: folder of a checkpoint, or of a baseline's run. baseline: which of the two.
        name: of its run.
    """

    url: str
    name: str
    baseline: bool = False


@dataclass(frozen=True)
class Ensemble:
    """Members, and task -> weight of each of them.

    Attributes:
        about: `name` of the run, `split`, `data_digest`, `data_url`, and how weights were `chosen`.
    """

    members: tuple[Member, ...]
    weights: dict[str, tuple[float, ...]]
    tasks: tuple[TaskSpec, ...]
    about: dict[str, Any] = field(default_factory=dict)


_ENSEMBLE = TypeAdapter(Ensemble)


def write_ensemble(run_dir: str, ensemble: Ensemble) -> None:
    """The file."""
    write_json(run_dir, ENSEMBLE, {"format": FORMAT, **asdict(ensemble)})


def is_ensemble(url: str) -> bool:
    """Whether there is an ensemble in a folder."""
    return exists(absolute_url(url), ENSEMBLE)


def read_ensemble(url: str) -> Ensemble:
    """Raises ValueError: no ensemble is there, it is damaged, or of another format."""
    about = read_json(absolute_url(url), ENSEMBLE)
    if about is None:
        raise ValueError(f"{url} holds no ensemble: make one with python -m launch ensemble RUN RUN")
    if about.pop("format", None) != FORMAT:
        raise ValueError(f"{url} has an ensemble of another format; this version reads {FORMAT!r}")
    try:
        return _ENSEMBLE.validate_python(about)
    except ValidationError as error:
        raise ValueError(f"{url}/{ENSEMBLE} is damaged: {error.errors()[0]['msg']}") from None
