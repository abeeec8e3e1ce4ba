"""One sentence for each mistake in a recipe: which key, what was given, what it takes, what was probably meant."""

from __future__ import annotations

import difflib
import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def section_of(annotation: Any) -> Any:
    """What lies below a field: its section's model class, `dict` for a free mapping, None for a plain value."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        annotation = members[0] if len(members) == 1 else None
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return dict if typing.get_origin(annotation) is dict else None


def all_keys(root: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key below a model, sections included."""
    keys: list[str] = []
    for name, field in root.model_fields.items():
        keys.append(prefix + name)
        section = section_of(field.annotation)
        if section not in (None, dict):
            keys += all_keys(section, f"{prefix}{name}.")
    return keys


def unknown_key(key: str, root: type[BaseModel]) -> str:
    """The sentence for a key that does not exist; a key without its section (`lr`) finds it (`optim.lr`)."""
    keys = all_keys(root)
    names = {known: known.rsplit(".", 1)[-1] for known in keys}
    name = key.rsplit(".", 1)[-1]
    near_names = difflib.get_close_matches(name, set(names.values()), n=3, cutoff=0.6)
    candidates = {known for known in keys if names[known] in near_names}
    candidates.update(difflib.get_close_matches(key, keys, n=1, cutoff=0.6))
    if not candidates:
        return f"unknown key {key}; the sections are {', '.join(root.model_fields)}"

    def likeness(known: str) -> tuple[float, int]:
        whole = difflib.SequenceMatcher(None, known, key).ratio()
        return whole + difflib.SequenceMatcher(None, names[known], name).ratio(), -len(known)

    return f"unknown key {key}; did you mean {max(sorted(candidates), key=likeness)}?"


def validation_sentence(error: ValidationError, root: type[BaseModel]) -> str:
    """The first finding of pydantic as one sentence."""
    first = error.errors(include_url=False)[0]
    key, field = _field_at(first["loc"], root)
    about = f" ({field.description})" if field is not None and field.description else ""
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{key} is missing{about}"
    if first["type"] == "value_error":
        return message if key in message or not key else f"{key}: {message}"
    given = f"{key}={first['input']!r}"
    wrong_type = any(word in first["type"] for word in ("type", "parsing", "literal", "int_from"))
    if wrong_type or field is None:
        takes = takes_what(field.annotation) if field is not None else message
        return f"{given} is of the wrong type: {key} takes {takes}{about}"
    return f"{given} is out of range: {message.replace('Input should', 'it should')}{about}"


def takes_what(annotation: Any) -> str:
    """In words: what values a field of this type takes."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _NAMES:
        return _NAMES[annotation]
    if annotation is type(None):
        return "null"
    if origin is typing.Annotated:
        return takes_what(arguments[0])
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments)) if len(arguments) > 1 else str(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(takes_what(argument) for argument in arguments)
    if origin in (list, tuple):
        elements = [a for a in arguments if a is not Ellipsis]
        count = f"{len(elements)} values" if origin is tuple and Ellipsis not in arguments else "values"
        return f"a list of {count}, each {takes_what(elements[0])}"
    if origin is dict:
        return f"a mapping of names to {takes_what(arguments[1])}"
    section = section_of(annotation)
    return f"a section with keys {', '.join(section.model_fields)}" if section not in (None, dict) else str(annotation)


def _field_at(location: tuple[int | str, ...], root: type[BaseModel]) -> tuple[str, FieldInfo | None]:
    """The dotted key and field of a pydantic location, without the parts that name members of unions or lists."""
    parts: list[str] = []
    model: Any = root
    field: FieldInfo | None = None
    for part in location:
        if model in (None, dict) or part not in model.model_fields:
            break
        field = model.model_fields[part]
        parts.append(str(part))
        model = section_of(field.annotation)
    return ".".join(parts), field


class RecipeError(ValueError):
    """A recipe or an override is wrong. The text is one sentence for the user."""
