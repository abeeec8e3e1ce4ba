"""The module `fleximoe`: light to import, complete, and what the wheel installs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fleximoe

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    "torch", "ray", "mlflow", "deepspeed", "pandas", "numpy", "pyarrow", "pydantic", "sklearn", "matplotlib", "rich",
    "typer",
)  # fmt: skip


def test_importing_it_loads_nothing_else():
    code = (
        "import sys; before = set(sys.modules); import fleximoe, json; dir(fleximoe); "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    assert "fleximoe" in loaded and [name for name in loaded if name.split(".")[0] in HEAVY] == []
    assert [name for name in loaded if name.split(".")[0] in ("launch", "trainer", "parallel", "data_shards")] == []
    assert len(loaded) < 60, "the standard library's json, os and typing, and no more"


def test_every_name_is_there_and_documented():
    for name in fleximoe.__all__:
        assert (getattr(fleximoe, name).__doc__ or "").strip(), name
    assert dir(fleximoe) == sorted(fleximoe.__all__)


@pytest.mark.slow
def test_the_wheel_holds_what_is_needed_and_nothing_else(tmp_path):
    pytest.importorskip("setuptools")
    tree = tmp_path / "tree"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    files = [name for name in files if name and (ROOT / name).is_file()]
    for name in files:  # a copy, as building writes into the folder that it builds from
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((ROOT / name).read_bytes())
    build = "from setuptools.build_meta import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        entry = next(opened.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert "fleximoe = launch.cli:main" in entry
    rooms = ("launch", "trainer", "parallel", "data_shards")
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"fleximoe.py", *rooms}
    wanted = {name for name in files if name.split("/")[0] in rooms}
    assert wanted - names == set()
    shipped = (
        "launch/recipes/digits.yaml",
        "launch/spaces/missing.yaml",
        "data_shards/sources/mappings/",
        "launch/py.typed",
    )
    assert all(any(name.startswith(own) for name in names) for own in shipped)
    assert {Path(name).suffix for name in wanted} <= {".py", ".yaml", ".typed", ".html", ".js", ".css"}
    extra = {n for n in names - wanted - {"fleximoe.py"} if ".dist-info/" not in n}
    assert extra == set()
