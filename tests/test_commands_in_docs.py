"""Every command that a user reads, in pages, recipes, cluster files and help texts, is one that the program accepts.

Nothing is run: arguments go through the real parser, recipes and their changes through the real loader.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.core

from data_shards.sources import source_class
from launch.cli import app
from trainer.config.recipe import load_recipe

ROOT = Path(__file__).resolve().parent.parent
WHERE = (
    "*.md",
    "docs/*.md",
    "benchmarks/*.md",
    "launch/recipes/*.yaml",
    "launch/cli.py",
    "launch/verbs/*.py",
    "*.yaml",
)
PLACEHOLDERS = ("...", "...]", "[section.key=value")
COMMAND = re.compile(r"-m (launch|trainer|benchmarks\.\w+)\b(?! VERB)([^`\n]*)")
# The base class of what a parser says has no public name.
WRONG = (typer.BadParameter.__mro__[1], KeyError, ValueError, OSError)
TEXTS = sorted(path for where in WHERE for path in ROOT.glob(where) if COMMAND.search(path.read_text("utf-8")))


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Module and arguments; what follows two spaces, a bracket or a comma is a remark."""
    for module, rest in COMMAND.findall(re.sub(r" *\\\n[# ]*", " ", text)):
        line = re.split(r"  |\s#|\s\(|\)|,\s|&&|;|\"", re.sub(r"\$\([^)]*\)", "X", rest.strip()))[0]
        words = [word for word in shlex.split(line.replace("'", "")) if word not in PLACEHOLDERS]
        # `train` alone in a sentence names the verb.
        if len(words) > 1 or module.startswith("benchmarks"):
            yield module, words


def parsed(words: list[str]) -> dict[str, Any]:
    """The arguments of a verb.

    Raises:
        KeyError: no such verb.
        UsageError: no such option, an argument too many or too few.
    """
    command: Any = typer.main.get_command(app)
    name, words = "launch", list(words)
    while isinstance(command, typer.core.TyperGroup):
        name = words.pop(0)
        command = command.commands[name]
    given: dict[str, Any] = command.make_context(name, words).params
    return given


def check(module: str, words: list[str]) -> None:
    if module.startswith("benchmarks"):
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8")
        unknown = [word for word in words if word.startswith("-") and f'"{word}"' not in source]
    elif module == "trainer":
        unknown = []
        load_recipe("digits" if words[0].endswith(".yaml") else words[0], words[1:])
    else:
        given = parsed(words)
        changes = [change for change in given.get("overrides") or [] if change != "key=value"]
        recipe = given.get("recipe")
        # A file is the reader's own recipe, not a shipped one.
        if recipe not in (None, "RECIPE") and not recipe.endswith(".yaml"):
            load_recipe(recipe, changes)
        unknown = []
        if "source" in given:
            options = [option.split("=")[0] for option in given.get("option") or [] if option != "key=value"]
            known = source_class(given["source"]).Options.model_fields if given["source"] != "NAME" else {}
            unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"unknown options {unknown}")


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_accepted(path: Path) -> None:
    wrong = []
    for module, words in commands(path.read_text("utf-8")):
        try:
            check(module, words)
        except WRONG as error:
            wrong.append(f"-m {module} {shlex.join(words)}: {error}")
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    [
        "python -m launch pack digits --put data/digits",
        "python -m launch trian digits name=x",
        "python -m launch train digits model.moe.expert=3",
        "python -m launch pack tables --out data/x -o path=x -o scrach=y",
        "python -m launch train no_such_recipe name=x",
        "python -m launch evaluate runs/a --drop",
        "python -m benchmarks.no_such_thing",
        "python -m benchmarks.survive --no-such-option 3",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    [(module, words)] = commands(line)
    with pytest.raises(WRONG):
        check(module, words)
