"""Writes docs/recipe_keys.md from the config classes: every key of a recipe, what it takes, its default, its meaning.

    python -m docs.make_recipe_keys

A test compares the page with what this would write, so the two cannot part.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from data_shards.config import MixtureEntry
from trainer.config import RunConfig
from trainer.recipe_errors import section_of, takes_what

PAGE = Path(__file__).with_name("recipe_keys.md")
HEAD = """# Every recipe key

Made from the config classes by `make docs`; do not edit. A recipe is a YAML file of these sections; on the command line
the same keys are `section.key=value`, e.g. `model.moe.experts=64`. An unknown key is an error that names the nearest.
"""


def sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """(dotted name, class) of every section, outer ones first."""
    yield prefix.rstrip("."), model
    for name, field in model.model_fields.items():
        inner = section_of(field.annotation)
        if inner not in (None, dict):
            yield from sections(inner, f"{prefix}{name}.")


def rows(model: type[BaseModel], prefix: str) -> list[str]:
    """Table rows of a section's plain keys."""
    made = []
    for name, field in model.model_fields.items():
        if section_of(field.annotation) in (None, dict):
            key = f"{prefix}.{name}".lstrip(".")
            made.append(f"| `{key}` | {_takes(field)} | {_default(field)} | {_text(field.description or '')} |")
    return made


def _takes(field: FieldInfo) -> str:
    if field.annotation == dict[str, MixtureEntry]:
        return "a mapping of names to data sets, see below"
    bounds = []
    for rule in field.metadata:
        for sign, name in (("≥", "ge"), (">", "gt"), ("≤", "le"), ("<", "lt")):
            if getattr(rule, name, None) is not None:
                bounds.append(f"{sign} {getattr(rule, name)}")
    return _text(", ".join([takes_what(field.annotation).replace("typing.Any", "anything"), *bounds]))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value: Any = field.get_default(call_default_factory=True)  # type: ignore[call-arg]
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True).replace("\n...", "").strip()
    return f"`{text}`" if text != "''" else "none"


def _text(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|")


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, model in [*sections(RunConfig), ("data.mixture.NAME", MixtureEntry)]:
        about = _text(inspect.getdoc(model) or "").replace("`RunConfig`", "run")
        table = rows(model, name)
        parts.append(f"\n## {name or 'The run'}\n\n{about}\n")
        if table:
            parts.append("\n| key | takes | default | meaning |\n|---|---|---|---|\n" + "\n".join(table) + "\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(PAGE)
