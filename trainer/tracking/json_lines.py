"""The sink that needs no server: one JSON object a line, documents and figures as files beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from data_shards.errors import LeaseDoubtError
from data_shards.lease.lease import Guard, Unowned
from trainer.run_folder import METRICS, metric_lines
from trainer.tracking.operations import Dataset, File, Operation
from trainer.worker.guarded_lines import GuardedLines


class JsonLinesSink:
    """One JSON object a line in `<folder>/metrics.jsonl`, documents and figures as files beside it.

    Works on any fsspec URL. A local file is appended to line by line, so that `tail -f` follows a run; object stores
    cannot append, so there the file is written anew at each flush. While it is in doubt whether the name is this
    process's own nothing is written, and it is made up for later.
    """

    run_id: str | None = None
    delivery: str | None = None

    def __init__(self, folder: str, guard: Guard | None = None) -> None:
        self._guard = guard or Unowned()
        self._fs, self._root = fsspec.url_to_fs(folder)
        self._fs.makedirs(self._root, exist_ok=True)
        self._path = f"{self._root}/{METRICS}"
        self._local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))
        self._lines = GuardedLines(Path(self._path), self._guard) if self._local else None
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

    def rewind(self, step: int) -> None:
        whole = self._text if self._lines is None else self._stored()
        kept = "".join(line for line in whole.splitlines(keepends=True) if not _later(line, step))
        if kept == whole:
            return
        self._text = kept
        if self._lines is not None:
            self._lines.replace(kept)

    def _stored(self) -> str:
        return Path(self._path).read_text(encoding="utf-8") if Path(self._path).exists() else ""

    def flush(self, timeout_s: float) -> None:
        if self._lines is not None:
            return
        try:
            self._guard.check()
        except LeaseDoubtError:
            return
        self._fs.pipe_file(self._path, self._text.encode())

    def finish(self, timeout_s: float) -> None:
        if self._lines is not None:
            self._lines.close()
        else:
            self._guard.confirm()
            self._fs.pipe_file(self._path, self._text.encode())

    def _write(self, seconds: float, **line: Any) -> None:
        text = json.dumps({"time": seconds, **line}, default=str) + "\n"
        if self._lines is not None:
            self._lines.write(text)
        else:
            self._text += text

    def _copy(self, file: File) -> None:
        self._guard.confirm()
        folder = f"{self._root}/{file['folder']}" if file["folder"] else self._root
        self._fs.makedirs(folder, exist_ok=True)
        self._fs.put_file(file["path"], f"{folder}/{Path(file['path']).name}")


def operations_in(run_dir: str) -> Iterator[Operation]:
    """Parameters, data sets, tags and metrics of a run's whole lines, as its tracker was told them."""
    for line in metric_lines(run_dir):
        moment = int(line["time"] * 1000)
        if "metrics" in line:
            yield {"op": "metrics", "values": line["metrics"], "step": line["step"], "time": moment}
        elif "params" in line:
            yield {"op": "params", "values": line["params"], "time": moment}
        elif "dataset" in line:
            name, url, digest, context = (line["dataset"][key] for key in ("name", "url", "digest", "context"))
            yield Dataset(op="dataset", name=name, url=url, digest=digest, context=context, time=moment)
        elif "tags" in line:
            yield {"op": "tags", "values": line["tags"], "time": moment}


def _later(line: str, step: int) -> bool:
    """Whether a line holds metrics of a step after this one."""
    try:
        entry = json.loads(line)
    except ValueError:
        return False  # damaged, but not by this start: it stays where it is
    return "metrics" in entry and entry.get("step", 0) > step
