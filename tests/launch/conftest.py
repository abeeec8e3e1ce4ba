"""What several tests share, as it takes long to make: packed data, a reference run, and one Ray with a token."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.launch.commands import last_json, overrides, python
from tests.launch.heads import ray_head
from tests.ports import free_port


@pytest.fixture(scope="package")
def place():
    """A folder with a packed data set; the path is short because sockets are put below it."""
    folder = Path(tempfile.mkdtemp(prefix="t"))
    options = ["-o", "records=250", "-o", "modalities=series:1,vector:1,image:1", "--workers", "1"]
    last_json(python("-m", "launch", "pack", "synthetic", "--out", str(folder / "data"), *options))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="package")
def under_torchrun(place):
    """The reference: the same run with no Ray in any of its processes."""
    port = f"--master-port={free_port()}"
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", port, "-m", "trainer", "synthetic_small"]
    done = python(*command, *overrides(place, "torchrun"))
    assert "rank 0 cpu experts 0-1, rank 1 cpu experts 2-3" in done.stderr
    return last_json(done)


@pytest.fixture(scope="module")
def open_head():
    """A Ray that asks nobody for a token. It ends with its file: the doctor of any other Ray on this machine would
    find its doors open, and say so."""
    with ray_head(token=False) as running:
        yield running


@pytest.fixture(scope="package")
def head():
    """One Ray with a token, as `ray start --head` makes it."""
    with ray_head() as running:
        yield running
