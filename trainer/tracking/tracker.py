"""The tracker: its methods build operations, and sinks take them. The loop never knows which sinks there are.

    tracker.log_metrics(...) -> {"op": "metrics", ...} -> JsonLinesSink: metrics.jsonl in the run's folder, at once
                                                       -> QueuedSink: a thread -> RunStore (MLflow), or Spool meanwhile

`trainer.tracking.create` gives rank 0 the sinks of the recipe and every other rank none. Documents, texts and figures
become files before any sink sees them, once for all sinks; where there is no sink nothing is drawn or written.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from data_shards.errors import LeaseDoubtError, LeaseLostError
from trainer.tracking.operations import Model, Operation, Status

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FINISH_SECONDS = 100.0  # that the end of a run waits for a server which is at work


class Sink(Protocol):
    """Where operations go. No method raises because a server is away; each raises LeaseLostError once the run's name
    belongs to another process."""

    @property
    def run_id(self) -> str | None:
        """The tracking server's id of this run, if it has one yet."""

    def take(self, operation: Operation) -> None:
        """Keep an operation, without waiting for a server. The file that it names is gone afterwards."""

    def rewind(self, step: int) -> None:
        """Metrics of later steps are going to be logged again."""

    def flush(self, timeout_s: float) -> None:
        """Hand over what is buffered; a server is waited for at most this long."""

    @property
    def delivery(self) -> str | None:
        """What has become of everything once the sink is finished: `complete`, or a sentence; None for a plain file."""

    def finish(self, timeout_s: float) -> None:
        """Flush and close; the run's status was the last operation. A server is waited for at most this long."""


class Tracker:
    """Where a run's record goes. No method raises because a server is away, and none waits for one while training.

    All but `finish` raise LeaseLostError once the run's name belongs to another process.
    """

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks
        self._finished = False

    @property
    def run_id(self) -> str | None:
        """The tracking server's id of this run, if it has one yet: the first among the sinks'."""
        return next((sink.run_id for sink in self._sinks if sink.run_id), None)

    @property
    def delivery(self) -> str:
        """Of a finished run: whether the tracking server has it: `complete`, `off`, or what is missing, in words."""
        return next((sink.delivery for sink in self._sinks if sink.delivery), "off")

    def log_params(self, params: Mapping[str, Any]) -> None:
        """What the run was made with; nested mappings become dotted names. Fixed once logged."""
        self._log({"op": "params", "values": flatten(params), "time": now_ms()})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Numbers by name (`train/loss`) at an optimiser step."""
        self._log({"op": "metrics", "values": dict(metrics), "step": step, "time": now_ms()})

    def log_figure(self, name: str, figure: Figure) -> None:
        """A matplotlib figure under a relative file name (`figures/roc.png`); the figure may be closed afterwards."""
        self._log_file(name, figure.savefig)

    def log_json(self, name: str, value: Any) -> None:
        """A JSON document under a relative file name."""
        self._log_file(name, lambda path: _write(path, json.dumps(value, indent=1, default=str) + "\n"))

    def log_text(self, name: str, text: str) -> None:
        """A text under a relative file name."""
        self._log_file(name, lambda path: _write(path, text))

    def log_file(self, name: str, path: Path) -> None:
        """A copy of a local file under a relative file name."""
        # A link is enough, as whatever keeps the file copies it.
        self._log_file(name, lambda link: link.symlink_to(path.absolute()))

    def log_dataset(self, name: str, url: str, digest: str, context: str) -> None:
        """The data used, and for what (`training`, `evaluation`); the digest is the manifest's."""
        self._log({"op": "dataset", "name": name, "url": url, "digest": digest, "context": context, "time": now_ms()})

    def log_model(
        self, uri: str, about: Mapping[str, str], metrics: Mapping[str, float], export: str | None = None
    ) -> None:
        """The run's result: where its checkpoint is, what it comes from, and how good it is.

        Args:
            export: folder of a model that MLflow can load, for the version that is registered; it stays.
        """
        told: Model = {"op": "model", "uri": uri, "about": dict(about), "metrics": dict(metrics), "time": now_ms()}
        self._log({**told, "export": export} if export else told)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """What may change later: attempts, notes, links."""
        self._log({"op": "tags", "values": dict(tags), "time": now_ms()})

    def rewind(self, step: int) -> None:
        """The run goes on from this step: what an earlier start logged of later ones is made again."""
        for sink in self._sinks:
            sink.rewind(step)

    def flush(self, timeout_s: float = 10.0) -> None:
        """Hand over what is buffered; called with every checkpoint. A server is waited for at most this long."""
        for sink in self._sinks:
            sink.flush(timeout_s)

    def finish(self, status: Status, timeout_s: float = FINISH_SECONDS) -> None:
        """Flush, close and say truly how the run ended; the first call counts.

        Nothing is said of a run that is another process's by now.
        """
        if self._finished:
            return
        self._finished = True
        for sink in self._sinks:
            try:
                sink.take({"op": "status", "status": status, "time": now_ms()})
                sink.finish(timeout_s)
            except (LeaseLostError, LeaseDoubtError) as error:
                logger.warning("the end of the run is not recorded: %s", error)

    def _log(self, operation: Operation) -> None:
        for sink in self._sinks:
            sink.take(operation)

    def _log_file(self, name: str, make: Callable[[Path], object]) -> None:
        """Have a file made under the last part of its name, and log it; the rest of the name is its folder."""
        if not self._sinks:
            return
        with tempfile.TemporaryDirectory(prefix="tracker_") as home:
            path, folder = Path(home) / Path(name).name, str(Path(name).parent)
            make(path)
            self._log({"op": "file", "path": str(path), "folder": None if folder == "." else folder, "time": now_ms()})


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted names with text values; lists and null as JSON, so that equal values compare equal."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def now_ms() -> int:
    """Since the epoch, as operations say when they were."""
    return int(time.time() * 1000)
