"""A run in a process of its own: this one keeps no process group, no Ray and no engine, and can be interrupted."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

from launch.api.errors import InputError, RunError
from launch.api.progress import show_progress
from trainer.config.run_config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
LAST_WORDS = 2000  # characters of what a process said before it died


def run_apart(config: RunConfig, progress: bool = True, debug: bool = False) -> dict[str, Any]:
    """What a run gives (see `run_here_or_on_ray`); its log lines are shown meanwhile.

    An interrupt is handed on: a training writes a checkpoint, and its result is that of a stopped run.

    Raises:
        InputError, RunError: with the sentence of the run.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    with tempfile.TemporaryFile() as said, show_progress(progress) as shown:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "launch.api.work"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=environment,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # an interrupt of this process is not one of that
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended already, and said why
                process.stdin.write(json.dumps({"config": config.model_dump(mode="json"), "debug": debug}) + "\n")
                process.stdin.flush()
            answer = None
            while answer is None:
                try:
                    answer = _listen(process.stdout, shown)
                except KeyboardInterrupt:
                    if process.stdin.closed:
                        raise  # the second one
                    shown.line("interrupted: finishing this step and writing a checkpoint", logging.INFO, None)
                    process.stdin.close()
            process.wait()
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            if process.poll() is None:
                process.terminate()
                process.wait()
        if not answer and process.returncode == -signal.SIGTERM:
            raise RunError("interrupted before the first step, so there is no checkpoint of this attempt")
        return _result(answer, process.returncode, said)


def _listen(lines: IO[str], shown: Any) -> dict[str, Any]:
    """Show what is logged; the answer, {} if there is none."""
    for line in lines:
        message: dict[str, Any] = json.loads(line)
        if "log" not in message:
            return message
        shown.line(message["log"], message["level"], message["progress"])
    return {}


def _result(answer: dict[str, Any], code: int, said: IO[bytes]) -> dict[str, Any]:
    if "result" in answer:
        result: dict[str, Any] = answer["result"]
        return result
    if "error" in answer:
        raise (InputError if answer["input"] else RunError)(answer["error"])
    said.seek(0)
    words = said.read().decode("utf-8", "replace")[-LAST_WORDS:].strip()
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    raise RunError(f"the process of the run ended with {how} and no answer; its last words were: {words or 'none'}")
