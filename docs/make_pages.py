"""Writes the pages that are made from the code: every key of a recipe, every source with its options and mapping keys,
the Python API, and the tutorial's notebook as a page.

    python -m docs.make_pages

A test compares the pages with what this would write, so the two cannot part.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import fleximoe
from data_shards.config import MixtureEntry
from data_shards.sources import SOURCES, source_class
from data_shards.sources.tables import mapping as table_mapping
from data_shards.sources.tables import modalities as table_modalities
from trainer.config.encoders import PretrainedConfig
from trainer.config.errors import section_of, takes_what
from trainer.config.run_config import RunConfig

HERE = Path(__file__).parent
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
    if field.annotation == dict[str, PretrainedConfig]:
        return "a mapping of modalities to encoders, see below"
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


def recipe_keys() -> str:
    """The page of recipe keys."""
    parts = [HEAD]
    for name, model in [
        *sections(RunConfig),
        ("data.mixture.NAME", MixtureEntry),
        ("model.encoders.NAME", PretrainedConfig),
    ]:
        about = _text(inspect.getdoc(model) or "").replace("`RunConfig`", "run")
        table = rows(model, name)
        parts.append(f"\n## {name or 'The run'}\n\n{about}\n")
        if table:
            parts.append("\n" + _table(table))
    return "".join(parts)


SOURCES_HEAD = """# Sources and their options

Made from the code by `make docs`; do not edit. `python -m launch pack NAME --out URL -o key=value`; `path` is also
`--source`, `splits` is also `--splits`.
"""
MAPPING_HEAD = """
# The mapping file of `tables`

How to use it: [your_data.md](your_data.md). `file` and `key` are those of the records where they are not given.
"""
MAPPING = {
    "the file": table_mapping.Mapping,
    "records": table_mapping.Records,
    "split": table_mapping.Split,
    "a series": table_modalities.SeriesTable,
    "a vector": table_modalities.VectorTable,
    "a text": table_modalities.TextTable,
    "an image": table_modalities.ImageTable,
    "a waveform": table_modalities.WaveformTable,
    "codes": table_modalities.CodesTable,
    "a task": table_mapping.Task,
}


def sources() -> str:
    """The page of sources and of the mapping file."""
    parts = [SOURCES_HEAD]
    for module in dict.fromkeys(module for module, _ in SOURCES.values()):
        names = [name for name, (own, _) in SOURCES.items() if own == module]
        cls = source_class(names[0])
        about = inspect.getdoc(inspect.getmodule(cls)) or ""
        parts.append(f"\n## {', '.join(names)}\n\n{about}\n\n{_table(list(_plain_rows(cls.Options)))}")
    parts.append(MAPPING_HEAD)
    for title, model in MAPPING.items():
        about = _text(inspect.getdoc(model) or "")
        parts.append(f"\n## Of {title}\n\n{about}\n\n{_table(list(_plain_rows(model)))}")
    return "".join(parts)


def _plain_rows(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        takes = (
            "a section, see below" if section not in (None, dict) or name in ("modalities", "tasks") else _takes(field)
        )
        default = "see its meaning" if section not in (None, dict) and not field.is_required() else _default(field)
        yield f"| `{name}` | {takes} | {default} | {_text(field.description or '')} |"


def _table(lines: list[str]) -> str:
    return "| key | takes | default | meaning |\n|---|---|---|---|\n" + "\n".join(lines) + "\n"


API_HEAD = """# The API

Made from the code by `make docs`; do not edit. How it is used: [python.md](python.md). All of it is imported as
`fleximoe.NAME`.
"""


def api() -> str:
    """The page of what `import fleximoe` gives, in the words of its docstrings."""
    parts = [API_HEAD]
    named = [(name, getattr(fleximoe, name)) for name in fleximoe.__all__]
    for title, wanted in (("Functions", inspect.isfunction), ("Classes", inspect.isclass)):
        parts.append(f"\n## {title}\n")
        for name, own in sorted((item for item in named if wanted(item[1])), key=lambda item: item[0].lower()):
            parts.append(f"\n### {name}\n\n{_described(name, own)}")
            parts += [f"\n#### {name}.{method}\n\n{_described(method, member)}" for method, member in _methods(own)]
    return "".join(parts)


def _methods(cls: Any) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of its own that say what they are, in the order in which they are written."""
    if not inspect.isclass(cls):
        return
    for name, member in vars(cls).items():
        called = inspect.isfunction(member) or isinstance(member, property)
        if called and not name.startswith("_") and member.__doc__:
            yield name, member


def _described(name: str, own: Any) -> str:
    """Signature, if it is called, and docstring; both as they are."""
    plain = isinstance(own, property) or (inspect.isclass(own) and issubclass(own, BaseException))
    kept = "" if plain else f"```python\n{name}{_signature(own)}\n```\n\n"
    return f"{kept}```text\n{inspect.getdoc(own) or ''}\n```\n"


def _signature(own: Any) -> str:
    """As it is written, with a line for each argument where it is long."""
    found = inspect.signature(own)
    words, star = [], False
    for one in found.parameters.values():
        star = star or one.kind is one.VAR_POSITIONAL
        if one.kind is one.KEYWORD_ONLY and not star:
            words.append("*")
            star = True
        if one.name != "self":
            words.append(_argument(one))
    gives = "" if found.return_annotation is found.empty else f" -> {found.return_annotation}"
    text = f"({', '.join(words)}){gives}"
    return text if len(text) <= 100 else "(\n" + "".join(f"    {word},\n" for word in words) + f"){gives}"


def _argument(one: inspect.Parameter) -> str:
    stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
    kind = "" if one.annotation is one.empty else f": {one.annotation}"
    return f"{stars}{one.name}{kind}" + ("" if one.default is one.empty else f" = {one.default!r}")


def tutorial() -> str:
    """The page of the notebook: its texts, and its code without what that shows."""
    cells = json.loads((HERE / "tutorial.ipynb").read_text("utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    first, *rest = parts
    note = "This page is [a notebook](tutorial.ipynb), which a test runs from top to bottom; `make docs` has made it."
    return "\n\n".join([first, note, *rest]) + "\n"


PAGES = {"recipe_keys.md": recipe_keys, "sources.md": sources, "api.md": api, "tutorial.md": tutorial}


if __name__ == "__main__":
    for file, made in PAGES.items():
        (HERE / file).write_text(made(), "utf-8")
        print(HERE / file)
