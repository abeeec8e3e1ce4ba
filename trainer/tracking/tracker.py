"""The Tracker protocol, and the versions that need no server: JSON lines, several at once, none.

The loop talks to a `Tracker` and never knows which. The MLflow version is in `trainer.tracking`, the only file that
imports MLflow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """Where a run's record goes. No method raises because a server is away, and none waits for one while training."""

    @property
    def run_id(self) -> str | None:
        """The tracking server's id of this run, if it has one yet."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """What the run was made with; nested mappings become dotted names. Fixed once logged."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Numbers by name (`train/loss`) at an optimiser step."""

    def log_figure(self, name: str, figure: Figure) -> None:
        """A matplotlib figure under a relative file name (`figures/roc.png`); the figure may be closed afterwards."""

    def log_json(self, name: str, value: Any) -> None:
        """A JSON document under a relative file name."""

    def log_text(self, name: str, text: str) -> None:
        """A text under a relative file name."""

    def log_file(self, name: str, path: Path) -> None:
        """A copy of a local file under a relative file name."""

    def log_dataset(self, name: str, url: str, digest: str, context: str) -> None:
        """The data used, and for what (`training`, `evaluation`); the digest is the manifest's."""

    def log_model(self, uri: str, about: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """The run's result: where its checkpoint is, what it comes from, and how good it is."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """What may change later: attempts, notes, links."""

    def flush(self) -> None:
        """Hand over what is buffered; called with every checkpoint."""

    def finish(self, status: Status) -> None:
        """Flush, close and say truly how the run ended."""


class NullTracker:
    """Keeps nothing: every rank but the first."""

    run_id: str | None = None

    def log_params(self, params: Mapping[str, Any]) -> None: ...
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...
    def log_figure(self, name: str, figure: Figure) -> None: ...
    def log_json(self, name: str, value: Any) -> None: ...
    def log_text(self, name: str, text: str) -> None: ...
    def log_file(self, name: str, path: Path) -> None: ...
    def log_dataset(self, name: str, url: str, digest: str, context: str) -> None: ...
    def log_model(self, uri: str, about: Mapping[str, str], metrics: Mapping[str, float]) -> None: ...
    def set_tags(self, tags: Mapping[str, str]) -> None: ...
    def flush(self) -> None: ...
    def finish(self, status: Status) -> None: ...


class MultiTracker:
    """Says everything to several trackers; the first run id among them is the run's."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = list(trackers)

    @property
    def run_id(self) -> str | None:
        return next((tracker.run_id for tracker in self._trackers if tracker.run_id), None)

    def log_params(self, params: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.log_params(params)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        for tracker in self._trackers:
            tracker.log_metrics(metrics, step)

    def log_figure(self, name: str, figure: Figure) -> None:
        for tracker in self._trackers:
            tracker.log_figure(name, figure)

    def log_json(self, name: str, value: Any) -> None:
        for tracker in self._trackers:
            tracker.log_json(name, value)

    def log_text(self, name: str, text: str) -> None:
        for tracker in self._trackers:
            tracker.log_text(name, text)

    def log_file(self, name: str, path: Path) -> None:
        for tracker in self._trackers:
            tracker.log_file(name, path)

    def log_dataset(self, name: str, url: str, digest: str, context: str) -> None:
        for tracker in self._trackers:
            tracker.log_dataset(name, url, digest, context)

    def log_model(self, uri: str, about: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log_model(uri, about, metrics)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        for tracker in self._trackers:
            tracker.set_tags(tags)

    def flush(self) -> None:
        for tracker in self._trackers:
            tracker.flush()

    def finish(self, status: Status) -> None:
        for tracker in self._trackers:
            tracker.finish(status)


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted names with text values; lists and null as JSON, so that equal values compare equal."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat
