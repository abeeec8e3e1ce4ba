"""Shared by all tests: one thread each, GPU tests only where there is a GPU, root tests only as root."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Before anything imports torch: tests run beside each other, and results must not depend on the number of cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say why a test cannot run here instead of failing, and which tests one process is to run one after the other."""
    for item in items:
        if "ray" in item.keywords:
            item.add_marker(pytest.mark.xdist_group("ray"))
        elif "together" in item.keywords:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        if "gpu" in item.keywords and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="no GPU here"))
        if "root" in item.keywords and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(autouse=True)
def _same_environment_afterwards() -> Iterator[None]:
    """What a test or a library sets in the environment must not reach the next test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
