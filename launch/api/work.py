"""The process that a run of the Python interface works in: `python -m launch.api.work`, started by `launch.api.child`.

One JSON object a line. In: the run. Out: what it logs, then its result or what went wrong. When stdin is closed, as
whoever started it wants an end or has ended itself, a run writes a checkpoint and returns, as for SIGTERM.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from typing import IO, Any

from trainer.worker.console import LOGGERS, json_line


def main() -> int:
    """Read the run, do it; returns the exit code."""
    import json

    out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    request = json.loads(sys.stdin.readline())
    handler = _Relay(out)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.DEBUG if request["debug"] else logging.INFO)
        logger.handlers, logger.propagate = [handler], False
    logging.captureWarnings(True)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    from launch.errors import exit_code, one_sentence

    try:
        from launch.runs.train import run_here_or_on_ray
        from trainer.config.run_config import RunConfig

        result = run_here_or_on_ray(RunConfig.of(request["config"]), request["debug"])
    except (Exception, KeyboardInterrupt) as error:
        if request["debug"]:
            logging.getLogger("fleximoe").exception("the run failed")
        handler.send({"error": one_sentence(error), "input": exit_code(error) == 2 or isinstance(error, ValueError)})
        return exit_code(error)
    handler.send({"result": result})
    return 0


def _end_with_stdin() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


class _Relay(logging.Handler):
    """Log lines as JSON."""

    def __init__(self, out: IO[str]) -> None:
        super().__init__()
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.send(
                {"log": record.getMessage(), "level": record.levelno, "progress": getattr(record, "progress", None)}
            )
        except Exception:
            self.handleError(record)

    def send(self, message: dict[str, Any]) -> None:
        """One line; nobody may be listening any more."""
        try:
            self._out.write(json_line(message) + "\n")
        except BrokenPipeError:
            return


if __name__ == "__main__":
    from trainer.__main__ import end

    end(main())
