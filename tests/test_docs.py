"""The documentation: generated pages are up to date, commands run, links lead somewhere, quoted errors are real."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"<!-- (run|file: (?P<name>[\w.]+)) -->\n```\w*\n(?P<text>.*?)```", re.DOTALL)


@pytest.mark.parametrize("file", ["recipe_keys.md", "sources.md", "api.md", "tutorial.md"])
def test_pages_made_from_the_code_are_up_to_date(file: str) -> None:
    from docs import make_pages

    assert (ROOT / "docs" / file).read_text("utf-8") == make_pages.PAGES[file](), (
        "the code has changed: run `make docs`"
    )


@pytest.mark.parametrize(("file", "least"), [("recipe_keys.md", 100), ("sources.md", 80)])
def test_every_key_has_a_meaning(file: str, least: int) -> None:
    rows = [line for line in (ROOT / "docs" / file).read_text("utf-8").splitlines() if line.startswith("| `")]
    assert len(rows) > least and [row for row in rows if row.split(" | ")[-1].strip(" |") == ""] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).is_file()] == []


@pytest.mark.parametrize("page", ["first_run", pytest.param("your_data", marks=pytest.mark.long)])
def test_commands_of_a_page_run_one_after_the_other(page: str, tmp_path: Path) -> None:
    """As a user has it: the files of the page, its commands, and the project's Python first in the path."""
    blocks = list(BLOCK.finditer((ROOT / "docs" / f"{page}.md").read_text("utf-8")))
    assert len(blocks) >= 3
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool, command in (("python", ""), ("torchrun", " -m torch.distributed.run")):
        (tools / tool).write_text(f'#!/bin/sh\nexec "{sys.executable}"{command} "$@"\n')
        (tools / tool).chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    env = {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    for block in blocks:
        if block["name"]:
            (tmp_path / block["name"]).write_text(block["text"])
            continue
        done = subprocess.run(
            ["bash", "-e", "-c", block["text"]], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=480
        )
        assert done.returncode == 0, f"{block['text']}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_snippets_of_python_run_one_after_the_other(tmp_path: Path) -> None:
    """As in a notebook: one process, an empty folder."""
    snippets = re.findall(
        r"<!-- python -->\n```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text("utf-8"), re.S
    )
    assert len(snippets) == 3
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    env = {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    code = "\n".join(snippets)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=480
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert "tasks.died: binary: two classes" in done.stdout


@pytest.mark.long
def test_the_site_is_built_without_a_network_and_asks_for_nothing(tmp_path: Path) -> None:
    """Links within it and the menu are checked by the builder; what a page loads lies beside it."""
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)],
        cwd=ROOT, capture_output=True, text=True, timeout=480,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    made = {path.parent.name for path in site.glob("*/index.html")} | {"index"}
    assert {page.stem for page in PAGES} - made == set()
    linked = r'<link[^>]*rel="?(?:stylesheet|icon|preconnect|prefetch)[^>]*href="?([^" >]+)'
    loads = re.compile(r'<(?:script|img|iframe)[^>]*\bsrc="?([^" >]+)|' + linked)
    for page in site.rglob("*.html"):
        found = [first or second for first, second in loads.findall(page.read_text("utf-8"))]
        assert [url for url in found if url.startswith(("http", "//"))] == [], page
    assert (site / "search" / "search_index.json").stat().st_size > 100_000


def test_the_menu_has_every_page() -> None:
    menu = re.findall(r"([\w/]+\.md)", (ROOT / "mkdocs.yml").read_text("utf-8"))
    assert sorted(menu) == sorted([*(page.name for page in PAGES), "results.md"])


def test_errors_in_the_docs_are_what_the_program_says() -> None:
    """Every quoted message, between its <placeholders>, is text of the code."""
    code = " ".join(
        p.read_text("utf-8")
        for room in ("launch", "trainer", "parallel", "data_shards")
        for p in (ROOT / room).rglob("*.py")
    )
    # Long messages are written as neighbouring pieces: f"..." f"..." is one text.
    code = re.sub(r'"\s*\n?\s*(?:\)\s*\n\s*)?[rf]{0,2}"', "", re.sub(r"\s+", " ", code))
    code = re.sub(r"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}", "<>", code)
    rows = [line for line in (ROOT / "docs" / "errors.md").read_text("utf-8").splitlines() if line.startswith("| `")]
    assert len(rows) > 20
    unknown = []
    for row in rows:
        for message in re.findall(r"`([^`]+)`", row.split("|")[1]):
            pieces = [piece.strip(" :;,.?") for piece in re.split(r"<[^>]*>", message)]
            unknown += [piece for piece in pieces if len(piece) > 3 and piece not in code]
    assert unknown == []


def test_figures_are_drawn_by_their_script(tmp_path: Path) -> None:
    from docs.figures.make_figures import FIGURES

    pages = [ROOT / "README.md", ROOT / "docs" / "concepts.md"]
    used = {name for page in pages for name in re.findall(r"figures/(\w+)\.svg", page.read_text("utf-8"))}
    assert used == set(FIGURES)
    for name, draw in FIGURES.items():
        draw().savefig(tmp_path / f"{name}.svg")
        assert (ROOT / "docs" / "figures" / f"{name}.svg").is_file() and (
            tmp_path / f"{name}.svg"
        ).stat().st_size > 2000
