"""The tutorial: run from top to bottom as a notebook, and what it shows is what its runs have."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import nbformat
import pytest

import fleximoe

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL = ROOT / "docs" / "tutorial.ipynb"


def test_outputs_are_not_kept():
    cells = nbformat.read(TUTORIAL, 4).cells
    assert [cell.source for cell in cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)] == []


def test_the_first_lines_of_the_site_are_those_of_the_tutorial():
    (snippet,) = re.findall(r"```python\n(.*?)\n```", (ROOT / "docs" / "index.md").read_text("utf-8"), re.S)
    assert snippet == next(cell.source for cell in nbformat.read(TUTORIAL, 4).cells if cell.cell_type == "code")


@pytest.mark.long
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    for name in [name for name in os.environ if name.startswith(("RAY_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    notebook = nbformat.read(TUTORIAL, 4)
    NotebookClient(notebook, timeout=1500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    last = {cell.source: cell.outputs[-1] for cell in notebook.cells if cell.cell_type == "code"}
    shown = {source.splitlines()[-1]: output["data"] for source, output in last.items()}
    run = fleximoe.open_run(str(tmp_path / "runs" / "first"))
    stored = json.loads((tmp_path / "runs" / "first" / "result.json").read_text())["metrics"]
    first = shown["run.metrics"]["text/html"]
    assert all(f'data-value="{value!r}"' in first for value in stored.values()) and stored["test/accuracy"] > 0.8
    less = re.search(r'test/accuracy</td><td class="number" data-value="([\d.]+)"',
                     shown['run.evaluate(drop="gradient", progress=False)']["text/html"])  # fmt: skip
    assert less and float(less[1]) < stored["test/accuracy"]
    assert float(shown["neighbours"]["text/plain"]) > 0.7
    assert "simple" in shown["compared"]["text/html"] and "first.html" in str(
        shown['run.report("first.html", sample=128)']
    )
    page = (tmp_path / "first.html").read_text(encoding="utf-8")
    assert (
        f'data-value="{run.metrics["test/auroc"]!r}"' in page and (tmp_path / "compared.html").stat().st_size > 10_000
    )
