"""Shared by all tests: one thread each, GPU tests only where there is a GPU, root tests only as root."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The same cases each time, so that a suite that passed passes; others with --hypothesis-profile=explore.
settings.register_profile("same", derandomize=True)
settings.register_profile("explore", derandomize=False, max_examples=1000)
settings.load_profile("same")

# Before anything imports torch: tests run beside each other, and results must not depend on the number of cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say why a test cannot run here instead of failing."""
    for item in items:
        if "gpu" in item.keywords and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="no GPU here"))
        if "root" in item.keywords and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Side by side (`pytest -n 2`): which tests one process runs, one after the other."""
    from xdist.scheduler import LoadScopeScheduling

    class BySharing(LoadScopeScheduling):
        """Files that start a Ray are one unit, a file whose tests share something another, else every test its own."""

        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            marks = _marks_in(config.rootpath / file)
            return "ray" if "ray" in marks else file if "together" in marks else nodeid

    return BySharing(config, log)


@functools.cache
def _marks_in(path: Path) -> frozenset[str]:
    """By the text, as the process that hands out tests knows only their names."""
    return frozenset(re.findall(r"pytest\.mark\.(\w+)", path.read_text("utf-8")))


@pytest.fixture(autouse=True)
def _same_environment_afterwards() -> Iterator[None]:
    """What a test or a library sets in the environment must not reach the next test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _loggers_that_can_be_heard() -> Iterator[None]:
    """A command that ran before, in a fixture too, sends the project's lines to a terminal; a test looks for them."""
    from trainer.worker.console import LOGGERS

    for name in LOGGERS:
        logging.getLogger(name).propagate = True
        logging.getLogger(name).handlers.clear()  # to a stderr that was another test's
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in LOGGERS:
            logger.disabled = False
    yield


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
