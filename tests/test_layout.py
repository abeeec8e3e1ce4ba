"""The house's rules about who may import what, and about what must never be called."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("launch", "trainer", "parallel", "data_shards")
MAY_IMPORT = {
    "launch": {"launch", "trainer", "parallel", "data_shards"},
    "trainer": {"trainer", "parallel", "data_shards"},
    "parallel": {"parallel"},
    "data_shards": {"data_shards"},
}
# Library -> the files (or room) that may import it.
ONLY_IN = {"deepspeed": "parallel/engine/engine.py", "mlflow": "trainer/tracking/mlflow_", "ray": "launch/"}
NEVER = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
RUNS_CODE = {"eval", "exec", "yaml.load", "yaml.unsafe_load"}

Source = tuple[str, ast.Module]


def sources() -> list[Source]:
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    return [(str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))) for path in files]


def imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(top-level package, line) of every import, also those inside functions and under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.split(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"line {node.lineno}: relative import; write the full name")


def wrong_arrows(files: list[Source]) -> list[str]:
    found = []
    for name, tree in files:
        room = name.split("/")[0]
        for package, line in imports(tree):
            if package in ROOMS and package not in MAY_IMPORT[room]:
                found.append(f"{name}:{line} imports {package}, and {room} may import {sorted(MAY_IMPORT[room])}")
            if package in ONLY_IN and not name.startswith(ONLY_IN[package]):
                found.append(f"{name}:{line} imports {package}, which belongs in {ONLY_IN[package]}")
            if package in NEVER:
                found.append(f"{name}:{line} imports {package}: no pickle is ever loaded")
    return found


def unsafe_calls(files: list[Source]) -> list[str]:
    """Calls that can run code from a file: torch.load without weights_only=True, allow_pickle, eval, exec."""
    found = []
    for name, tree in files:
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            callee, words = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if callee == "torch.load" and words.get("weights_only") != "True":
                found.append(f"{name}:{node.lineno} torch.load without weights_only=True")
            if words.get("allow_pickle", "False") != "False" or callee in RUNS_CODE:
                found.append(f"{name}:{node.lineno} {callee} can run what it reads")
    return found


def test_rooms_import_one_way_and_libraries_stay_in_their_file():
    files = sources()
    assert len(files) > 20, "the rooms were not found"
    assert wrong_arrows(files) == []


def test_nothing_loads_pickles_or_evaluates_text():
    assert unsafe_calls(sources()) == []


def test_every_module_says_what_it_is():
    silent = [name for name, tree in sources() if not ast.get_docstring(tree)]
    assert silent == []


@pytest.mark.parametrize(
    ("name", "code", "complaint"),
    [
        ("parallel/x.py", "import trainer.training.loop", "imports trainer"),
        ("data_shards/x.py", "def f():\n    from parallel import mesh", "imports parallel"),
        ("trainer/x.py", "import ray.train", "belongs in launch/"),
        ("trainer/training/loop.py", "import deepspeed", "belongs in parallel/engine/engine.py"),
        ("launch/x.py", "from mlflow import MlflowClient", "belongs in trainer/tracking/mlflow_"),
        ("trainer/x.py", "import pickle", "no pickle"),
    ],
)
def test_a_wrong_import_is_found(name, code, complaint):
    assert complaint in wrong_arrows([(name, ast.parse(code))])[0]


@pytest.mark.parametrize("code", ["torch.load(f)", "np.load(f, allow_pickle=True)", "eval(text)", "yaml.load(f)"])
def test_an_unsafe_call_is_found(code):
    assert unsafe_calls([("trainer/x.py", ast.parse(code))])
