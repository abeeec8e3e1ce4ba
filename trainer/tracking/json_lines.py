"""The tracker that needs no server: one JSON object a line, documents and figures as files beside it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

from trainer.run_folder import METRICS
from trainer.tracking.tracker import Status, flatten

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class JsonLinesTracker:
    """One JSON object a line in `<folder>/metrics.jsonl`, documents and figures as files beside it.

    Works on any fsspec URL. A local file is appended to line by line, so that `tail -f` follows a run; object stores
    cannot append, so there the file is written anew at each flush.
    """

    run_id: str | None = None

    def __init__(self, folder: str) -> None:
        self._fs, self._root = fsspec.url_to_fs(folder)
        self._fs.makedirs(self._root, exist_ok=True)
        self._path = f"{self._root}/{METRICS}"
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
