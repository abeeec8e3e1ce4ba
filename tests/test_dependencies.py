"""What is imported is declared in pyproject.toml, once, and what is declared has its version in constraints.txt."""

from __future__ import annotations

import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable

import pytest

from tests.test_layout import ROOF, ROOMS, ROOT, Source, house, imports, sources

BESIDE = ("tests", "benchmarks", "docs")  # what no user needs may come with the extra `test`
# Module -> the distribution that brings it, where the two bear different names.
DISTRIBUTION = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "sksurv": "scikit-survival",
    "xdist": "pytest-xdist",
    "yaml": "pyyaml",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def plain(requirement: str) -> str:
    """The name of a requirement in the form in which names are compared: `ray[tune]>=2` is ray."""
    name = re.match(r"[\w.-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def undeclared(files: list[Source], declared: set[str]) -> list[str]:
    """Imports of what is neither Python's, nor ours, nor of a declared distribution."""
    known = {*sys.stdlib_module_names, ROOF, *ROOMS, *BESIDE}
    return [
        f"{name}:{line} imports {package}, which pyproject.toml does not declare"
        for name, tree in files
        for module, _, line in imports(name, tree)
        if (package := module.split(".")[0]) not in known and plain(DISTRIBUTION.get(package, package)) not in declared
    ]


def twice(requirements: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(map(plain, requirements)).items() if count > 1]


def test_what_the_rooms_import_is_declared_and_not_only_for_tests() -> None:
    extras = [requirement for extra, own in EXTRAS.items() if extra != "test" for requirement in own]
    assert undeclared(sources(), {plain(name) for name in [*PROJECT["dependencies"], *extras]}) == []


def test_what_tests_and_benchmarks_import_is_declared() -> None:
    everything = [*PROJECT["dependencies"], *(name for own in EXTRAS.values() for name in own)]
    assert undeclared(sources(BESIDE), {plain(name) for name in everything}) == []


def test_each_name_is_declared_once() -> None:
    assert [twice(own) for own in (PROJECT["dependencies"], *EXTRAS.values())] == [[]] * (1 + len(EXTRAS))


def test_what_is_declared_has_a_tested_version() -> None:
    pinned = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line]
    declared = {plain(name) for own in (PROJECT["dependencies"], *EXTRAS.values()) for name in own}
    assert declared - {plain(line) for line in pinned} - {PROJECT["name"]} == set()
    assert twice(pinned) == []


@pytest.mark.parametrize("code", ["import yaml", "def f():\n    from yaml import safe_load", "import yaml.nodes"])
def test_an_undeclared_import_is_found(code: str) -> None:
    files = house(trainer__x=f"import json, numpy\nfrom parallel import mesh\n{code}")
    assert undeclared(files, {"numpy", "pyyaml"}) == []
    (complaint,) = undeclared(files, {"numpy"})
    assert "imports yaml, which pyproject.toml does not declare" in complaint
    assert twice(["ray[tune]>=2", "Ray", "numpy"]) == ["ray"]
