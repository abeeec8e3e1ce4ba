"""A YAML recipe and `section.key=value` overrides -> RunConfig.

Recipes are the files of `launch/recipes`; both `python -m launch train` and `torchrun -m trainer` read them here.
A mistake is reported as a `RecipeError`: one sentence that names the key, the value and what would be right.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from data_shards.errors import YamlError
from data_shards.paths import absolute_path
from data_shards.yaml_file import parse_yaml, read_yaml
from trainer.config.errors import RecipeError, section_of, unknown_key, validation_sentence
from trainer.config.job_types import FUSEMOE
from trainer.config.preset import left_open
from trainer.config.run_config import RunConfig, run_config_class

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "launch" / "recipes"


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The recipe of this name (or YAML path) with overrides `section.key=value` applied in order.

    Raises RecipeError: unknown recipe (lists the known ones), unknown key (names the nearest one), wrong value
    (names the key, the value and what it takes).
    """
    path = _find(recipe)
    try:
        tree = read_yaml(path, "recipe")
    except YamlError as error:
        raise RecipeError(str(error)) from None
    return recipe_of(tree, overrides, path.stem, f"recipe {path}", f"recipe {path.name}")


def recipe_of(tree: Any, overrides: Sequence[str], stem: str, where: str, short: str | None = None) -> RunConfig:
    """A recipe that was read, or made, with overrides applied in order. Raises RecipeError.

    Args:
        stem: begins the name of a run that is given none. where, short: the recipe in messages.
    """
    if not isinstance(tree, dict):
        raise RecipeError(f"{where} must be a mapping of sections, not {type(tree).__name__}")
    tree.setdefault("name", f"{stem}-{datetime.now():%Y%m%d-%H%M%S}")
    kind = _class_of(tree, overrides, where)
    _refuse_unknown_keys(tree, kind, kind, "", where)
    config = _validated(tree, kind, overrides, short or where)
    if config.unnamed:
        raise RecipeError(f"{short or where}: unnamed is filled in when a recipe is read; leave it out, and name keys")
    if config.job != FUSEMOE or config.preset == "none":
        return config
    return config.model_copy(update={"unnamed": left_open(tree)})


def apply_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The run with overrides `section.key=value` applied in order. Raises RecipeError."""
    tree, where = config.model_dump(mode="json"), f"run {config.name}"
    return _validated(tree, _class_of(tree, overrides, where), overrides, where)


def known_recipes() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _class_of(tree: dict[str, Any], overrides: Sequence[str], where: str) -> type[RunConfig]:
    """The run's class: its type of job, which an override may name, can have a section of its own."""
    named = [_parse(text, f"value of override {key}={text}") for key, _, text in _split(overrides) if key == "job"]
    try:
        return run_config_class({**tree, **({"job": named[-1]} if named else {})})
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from None


def _split(overrides: Sequence[str]) -> list[tuple[str, str, str]]:
    return [(key.strip(), equals, text) for key, equals, text in (override.partition("=") for override in overrides)]


def _validated(tree: dict[str, Any], kind: type[RunConfig], overrides: Sequence[str], where: str) -> RunConfig:
    for override in overrides:
        _apply(tree, kind, override)
    named = {key for key, _, _ in _split(overrides)}
    if tree.get("unnamed"):
        open_still = tree.get("preset") != "none"
        tree["unnamed"] = [key for key in tree["unnamed"] if open_still and key not in named]
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(f"{where}: {validation_sentence(error, kind)}") from None


def _find(recipe: str) -> Path:
    is_path = recipe.endswith((".yaml", ".yml")) or "/" in recipe
    path = absolute_path(recipe) if is_path else RECIPES / f"{recipe}.yaml"
    if path.is_file():
        return path
    known = ", ".join(known_recipes())
    if is_path:
        raise RecipeError(f"recipe file {recipe} does not exist; shipped recipes: {known}")
    near = difflib.get_close_matches(recipe, known_recipes(), n=1)
    hint = f", did you mean {near[0]}?" if near else ""
    raise RecipeError(f"unknown recipe {recipe!r}{hint}; shipped recipes: {known}")


def _parse(text: str, where: str) -> Any:
    try:
        return parse_yaml(text, where)
    except YamlError as error:
        raise RecipeError(str(error)) from None


def _apply(tree: dict[str, Any], kind: type[RunConfig], override: str) -> None:
    """Set one `section.key=value` in the tree; the value is YAML, so lists and null work."""
    ((key, equals, text),) = _split([override])
    if not equals or not key:
        raise RecipeError(f"override {override!r} has no value: write section.key=value, e.g. optim.lr=0.001")
    _refuse_unknown_path(key.split("."), kind, override)
    value = _parse(text, f"value of override {override!r}")
    if isinstance(value, str) and text.strip().removeprefix(value).lstrip().startswith("#"):
        value = text.strip()  # a folder called "site #1", not a remark
    *sections, last = key.split(".")
    for section in sections:
        child = tree.setdefault(section, {})
        if not isinstance(child, dict):
            raise RecipeError(f"override {override!r}: {section} is {child!r} in the recipe, not a section")
        tree = child
    tree[last] = value


def _refuse_unknown_path(parts: list[str], root: type[RunConfig], where: str) -> None:
    model: Any = root
    for depth, part in enumerate(parts):
        if model is None:
            raise RecipeError(f"override {where!r}: {'.'.join(parts[:depth])} is a value and has no keys of its own")
        if model is dict:
            return
        if part not in model.model_fields:
            raise RecipeError(f"override {where!r}: {unknown_key('.'.join(parts), root)}")
        model = section_of(model.model_fields[part].annotation)


def _refuse_unknown_keys(
    tree: dict[Any, Any], root: type[RunConfig], model: type[BaseModel], prefix: str, where: str
) -> None:
    for key, value in tree.items():
        if key not in model.model_fields:
            raise RecipeError(f"{where}: {unknown_key(f'{prefix}{key}', root)}")
        section = section_of(model.model_fields[key].annotation)
        if isinstance(section, type) and issubclass(section, BaseModel) and isinstance(value, dict):
            _refuse_unknown_keys(value, root, section, f"{prefix}{key}.", where)
