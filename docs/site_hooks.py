"""For the builder of the site: the page of measurements lies outside of this folder, and is part of the site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

RESULTS = "results.md"
OUTSIDE = Path(__file__).resolve().parent.parent / "benchmarks" / "RESULTS.md"


def on_files(files: Files, config: Any) -> Files:
    """Adds it."""
    files.append(File.generated(config, RESULTS, abs_src_path=str(OUTSIDE)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to it and from it, as they are in the repository, lead to where it is on the site."""
    return markdown.replace("](../benchmarks/RESULTS.md", f"]({RESULTS}").replace("](../docs/", "](")
