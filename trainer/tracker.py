"""The Tracker protocol, and the versions that need no server: JSON lines, several at once, none.

The loop talks to a `Tracker` and never knows which. The MLflow version is in `trainer.tracking`, the only file that
imports MLflow.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import fsspec

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


class JsonLinesTracker:
    """One JSON object a line in `<folder>/metrics.jsonl`, documents and figures as files beside it.

    Works on any fsspec URL. A local file is appended to line by line, so that `tail -f` follows a run; object stores
    cannot append, so there the file is written anew at each flush.
    """

    run_id: str | None = None

    def __init__(self, folder: str) -> None:
        self._fs, self._root = fsspec.url_to_fs(folder)
        self._fs.makedirs(self._root, exist_ok=True)
        self._path = f"{self._root}/metrics.jsonl"
        self._local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))
        self._text = ""
        if not self._local and self._fs.exists(self._path):
            self._text = self._fs.cat_file(self._path).decode()

    def _write(self, **line: Any) -> None:
        text = json.dumps({"time": round(time.time(), 3), **line}, default=str) + "\n"
        if self._local:
            with Path(self._path).open("a", encoding="utf-8") as file:
                file.write(text)
        else:
            self._text += text

    def _file(self, name: str) -> str:
        path = f"{self._root}/{name}"
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        return path

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._write(params=flatten(params))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._write(step=step, metrics=dict(metrics))

    def log_figure(self, name: str, figure: Figure) -> None:
        with self._fs.open(self._file(name), "wb") as file:
            figure.savefig(file, format=Path(name).suffix.lstrip(".") or "png")

    def log_json(self, name: str, value: Any) -> None:
        self.log_text(name, json.dumps(value, indent=1, default=str) + "\n")

    def log_text(self, name: str, text: str) -> None:
        self._fs.pipe_file(self._file(name), text.encode())

    def log_file(self, name: str, path: Path) -> None:
        self._fs.put_file(str(path), self._file(name))

    def log_dataset(self, name: str, url: str, digest: str, context: str) -> None:
        self._write(dataset={"name": name, "url": url, "digest": digest, "context": context})

    def log_model(self, uri: str, about: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        self._write(model={"uri": uri, **about, "metrics": dict(metrics)})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._write(tags=dict(tags))

    def flush(self) -> None:
        if not self._local:
            self._fs.pipe_file(self._path, self._text.encode())

    def finish(self, status: Status) -> None:
        self._write(status=status)
        self.flush()


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
