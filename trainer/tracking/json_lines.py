"""The sink that needs no server: one JSON object a line, documents and figures as files beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec

from trainer.run_folder import METRICS
from trainer.tracking.operations import File, Operation


class JsonLinesSink:
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

    def take(self, operation: Operation) -> None:
        seconds = operation["time"] / 1000
        match operation["op"]:
            case "params":
                self._write(seconds, params=operation["values"])
            case "metrics":
                self._write(seconds, step=operation["step"], metrics=operation["values"])
            case "file":
                self._copy(operation)
            case "dataset":
                self._write(seconds, dataset={key: operation[key] for key in ("name", "url", "digest", "context")})
            case "model":
                pointer = {"uri": operation["uri"], **operation["about"]}
                self._write(seconds, model={**pointer, "metrics": operation["metrics"]})
            case "tags":
                self._write(seconds, tags=operation["values"])
            case "status":
                self._write(seconds, status=operation["status"])

    def flush(self, timeout_s: float) -> None:
        if not self._local:
            self._fs.pipe_file(self._path, self._text.encode())

    def finish(self) -> None:
        self.flush(timeout_s=0.0)

    def _write(self, seconds: float, **line: Any) -> None:
        text = json.dumps({"time": seconds, **line}, default=str) + "\n"
        if self._local:
            with Path(self._path).open("a", encoding="utf-8") as file:
                file.write(text)
        else:
            self._text += text

    def _copy(self, file: File) -> None:
        folder = f"{self._root}/{file['folder']}" if file["folder"] else self._root
        self._fs.makedirs(folder, exist_ok=True)
        self._fs.put_file(file["path"], f"{folder}/{Path(file['path']).name}")
