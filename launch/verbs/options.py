"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Changes to the recipe, e.g. model.moe.experts=64."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show stack traces, and what Ray and other libraries log.")]
