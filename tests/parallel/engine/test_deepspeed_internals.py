"""What is used of DeepSpeed beside its public interface is there, does what it is used for, and is used once."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from parallel import init_distributed
from parallel.engine import deepspeed_internals as internals
from tests.parallel.runs import Case, make_engine, train_steps
from tests.ranks import run_ranks

pytestmark = pytest.mark.together
ROOT = Path(__file__).parents[3]


def _names(rank: int, world: int) -> list[str]:
    """Names that are gone."""
    init_distributed("cpu", 60)
    engine = make_engine(rank, world, Case(2, 1))
    gone = []
    for name in internals.MODULE_NAMES:
        module, _, attribute = name.rpartition(".")
        try:
            if not hasattr(importlib.import_module(module), attribute):
                importlib.import_module(name)
        except ImportError:
            gone.append(name)
    gone += [f"engine.{name}" for name in internals.ENGINE_NAMES if not hasattr(engine._engine, name)]
    gone += [f"zero.{name}" for name in internals.ZERO_NAMES if not hasattr(engine._zero, name)]
    gone += ["parameter._hp_mapping" for p in engine.module.parameters() if not hasattr(p, "_hp_mapping")]
    return gone


def test_every_name_is_there() -> None:
    assert run_ranks(_names, 2)[0] == []


def test_the_installed_version_is_the_one_that_the_names_are_of() -> None:
    assert importlib.metadata.version("deepspeed") == internals.VERSION
    assert f'"deepspeed>={internals.VERSION},<0.20"' in (ROOT / "pyproject.toml").read_text("utf-8")


def test_the_list_is_complete() -> None:
    """What any file of the folder takes of the optimizer or of DeepSpeed's engine is in the list."""
    public = {"forward", "backward", "step", "destroy", "train", "eval"}
    modules = {"muon", "stage_1_and_2"}
    for path in (ROOT / "parallel" / "engine").glob("*.py"):
        text = path.read_text("utf-8")
        assert set(re.findall(r"\bzero\.(\w+)", text)) <= {*internals.ZERO_NAMES, *modules}, path.name
        assert set(re.findall(r"\b_zero\.(\w+)", text)) <= set(internals.ZERO_NAMES), path.name
        assert set(re.findall(r"\b_engine\.(\w+)", text)) <= {*internals.ENGINE_NAMES, *public}, path.name
        used = {f"deepspeed.utils.groups.{name}" for name in re.findall(r"\bgroups\.(_\w+)", text)}
        assert used <= set(internals.MODULE_NAMES), path.name


class Asked(TorchDispatchMode):
    """Counts what a step asks of other ranks and of the device: sums, copies to the host, numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = {"sums": 0, "copies": 0, "numbers": 0}
        self._originals = dist.all_reduce, Tensor.cpu

    def __enter__(self) -> Asked:
        dist.all_reduce, Tensor.cpu = (  # type: ignore[method-assign]
            partial(self._note, "sums", self._originals[0]),
            lambda tensor: self._note("copies", self._originals[1], tensor),
        )
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        dist.all_reduce, Tensor.cpu = self._originals  # type: ignore[method-assign]

    def _note(self, name: str, call: Any, *args: Any, **kwargs: Any) -> Any:
        self.counted[name] += 1
        return call(*args, **kwargs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counted["numbers"] += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def _in_the_step(rank: int, world: int, cases: list[Case]) -> list[dict[str, int]]:
    init_distributed("cpu", 60)
    found = []
    for case in cases:
        engine = make_engine(rank, world, case)
        train_steps(engine, case, rank, world, 0, 1)  # DeepSpeed links states in its first step
        asked = Asked()

        def counted_step(step: Any = engine.step, asked: Asked = asked) -> bool:
            with asked:
                accepted: bool = step()
            return accepted

        engine.step = counted_step  # type: ignore[method-assign]
        train_steps(engine, case, rank, world, 1, 2)
        found.append(asked.counted | {"groups": len(engine._zero.bit16_groups)})
        engine.close()
    return found


def test_a_step_waits_once_for_one_number() -> None:
    """The norm travels once, and once to the host; whatever else reads a number reads the host's copy."""
    cases = [Case(2, stage, precision=precision) for stage in (1, 2) for precision in ("fp32", "bf16")]
    for rank in run_ranks(_in_the_step, 2, cases):
        for counted in rank:
            assert counted["sums"] == 1 and counted["copies"] == 1
            # Of the host's own copy: the check whether it is finite, and a product a group.
            assert counted["numbers"] == 1 + counted["groups"]


FAKE = """
import time, torch, torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
dist.init_process_group("fake", rank=0, world_size=1024, store=FakeStore())
import parallel.engine.engine as engine_module
from parallel import Engine, MoEConfig, ParallelConfig, create_mesh
engine_module._import_deepspeed(torch.device("cpu")).init_distributed(dist_backend="fake", verbose=False)
made, sent = [], []
new_group, scatter = dist.new_group, dist.reduce_scatter_tensor
def noted(*args, **kwargs):
    made.append(len(args[0]) if args else 1024)
    return new_group(*args, **kwargs)
def counted(*args, **kwargs):
    sent.append(dist.get_world_size(kwargs["group"]))
    return scatter(*args, **kwargs)
dist.new_group, dist.reduce_scatter_tensor = noted, counted
from tests.parallel.runs import Case, Net
case = Case(8, 1, layers=12, experts=16)
mesh = create_mesh(ParallelConfig(workers=1024, expert_parallel=8), case.moe)
engine = Engine(Net(case, mesh.dispatcher()), mesh, lr=1e-3, clip=1.0)
create_mesh(ParallelConfig(workers=1024, expert_parallel=8), case.moe)
seconds = []
for _ in range(4):
    for parameter in engine.module.parameters():
        parameter.grad = torch.full_like(parameter, 1e-4)
    sent.clear()
    start = time.perf_counter()
    engine.backward(torch.zeros(()))
    middle = time.perf_counter()
    engine.step()
    seconds.append((middle - start, time.perf_counter() - middle))
print(sorted(made), sent.count(1024), sent.count(128), *(1e3 * min(part) for part in zip(*seconds)))
"""


def test_a_rank_of_1024_makes_four_groups_and_costs_its_host_little() -> None:
    """Of its experts, of their copies, of all for gradients and for control; with a second mesh the same ones."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FAKE], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    made, rest = done.stdout.strip().rsplit("]", 1)
    world, copies, reduce_ms, step_ms = map(float, rest.split())
    assert made == "[8, 128, 1024, 1024"
    assert (world, copies) == (14, 12), "12 layers, the head and the encoders; experts of 12 layers"
    assert reduce_ms < 100 and step_ms < 200, "measured: 6 and 12"
