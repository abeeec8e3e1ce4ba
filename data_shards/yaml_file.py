"""YAML as it is written: recipes, mappings, spaces and definitions are read here and nowhere else.

PyYAML reads YAML 1.1 and keeps the last of two equal keys. Here a key twice is refused, and plain words mean what YAML
1.2 says (its core schema): only true and false are booleans, so `no`, `yes`, `on` and `off` are text, as are dates,
times of day (12:30), 1_000 and numbers that begin with 0; 1e-3 is a number. A number remembers how it was written, so
where text is wanted 1.10 stays "1.10". Files of other tools are read as those tools read them (`read_as_1_1`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from data_shards.errors import YamlError

_NULL = "tag:yaml.org,2002:null"
_CORE = {
    "tag:yaml.org,2002:bool": ("true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:int": (r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|[-+]?\.[0-9]+(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    _NULL: (r"~|null|Null|NULL|", "~nN"),
    "tag:yaml.org,2002:merge": ("<<", "<"),
}


class WrittenInt(int):
    """A whole number whose text is what stood in the file."""

    written: str

    def __str__(self) -> str:
        return self.written


class WrittenFloat(float):
    """A number whose text is what stood in the file."""

    written: str

    def __str__(self) -> str:
        return self.written


class _Core(yaml.SafeLoader):
    """The core schema of YAML 1.2, numbers with their text."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper, which also writes numbers that remember their text."""


def _int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(node.value)
    number = WrittenInt(text, 16 if text.startswith("0x") else 10)
    number.written = text
    return number


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = str(node.value)
    plain = text.lower()
    number = WrittenFloat(plain.replace(".inf", "inf").replace(".nan", "nan"))
    if math.isinf(number) and "inf" not in plain:
        raise yaml.constructor.ConstructorError(None, None, f"{text} is beyond the largest number", node.start_mark)
    number.written = text
    return number


# A class shares the resolvers of its parent until it has its own.
_Core.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _CORE.items():
    _Core.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), [*_first])
_Core.add_implicit_resolver(_NULL, re.compile(r"\Z"), [""])
_Core.add_constructor("tag:yaml.org,2002:int", _int)
_Core.add_constructor("tag:yaml.org,2002:float", _float)
# So that text which reads as a number is quoted, also where YAML 1.1 knows no number: "1e-3".
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(rf"(?:{_CORE['tag:yaml.org,2002:float'][0]})\Z"), [*"-+.0123456789"]
)
_Dumper.add_representer(WrittenInt, lambda dumper, value: dumper.represent_int(int(value)))
_Dumper.add_representer(WrittenFloat, lambda dumper, value: dumper.represent_float(float(value)))


def read_yaml(path: Path, what: str) -> Any:
    """The one document of a file; None for an empty one.

    Args:
        what: of what kind the file is, for messages, e.g. "mapping file".
    Raises:
        YamlError: it cannot be read, is not YAML, or has a key twice; one sentence that names the file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise YamlError(f"{what} {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise YamlError(f"{what} {path} cannot be read as UTF-8: {error}") from error
    return parse_yaml(text, f"{what} {path}")


def parse_yaml(text: str, where: str) -> Any:
    """The one document of a text. Raises YamlError, which begins with `where`."""
    documents = _documents(text, where, _Core)
    if len(documents) > 1:
        raise YamlError(f"{where} holds {len(documents)} YAML documents, and one is expected: remove the lines ---")
    return documents[0] if documents else None


def read_as_1_1(text: str, where: str) -> list[Any]:
    """All documents of a file that another tool will read, with the values that PyYAML gives it. Raises YamlError."""
    return _documents(text, where, yaml.SafeLoader)


def to_yaml(tree: Any, one_line: bool = False) -> str:
    """Text that `parse_yaml` reads as the same values, in the order of the tree."""
    style: dict[str, Any] = {"default_flow_style": True, "width": 10_000} if one_line else {}
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, **style)


def _documents(text: str, where: str, kind: type[yaml.SafeLoader]) -> list[Any]:
    found = []
    try:
        loader = kind(text)
        while loader.check_node():
            node = loader.get_node()
            twice = next(_keys_twice(node, loader, "", set()), None)
            if twice is not None:
                key, first, second = twice
                raise YamlError(
                    f"{where}: key {key} is given twice, {_lines(first, second)}; only one of them can hold: remove "
                    "the other"
                )
            found.append(loader.construct_document(node))
    # RecursionError, ValueError: nested deeper than Python follows, and `!!int x`.
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, YamlError):
            raise
        raise YamlError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    return found


def _lines(first: yaml.Mark, second: yaml.Mark) -> str:
    if first.line == second.line:
        return f"in line {first.line + 1} at columns {first.column + 1} and {second.column + 1}"
    return f"in line {first.line + 1} and in line {second.line + 1}"


def _keys_twice(
    node: yaml.Node | None, loader: yaml.SafeLoader, place: str, seen: set[int]
) -> Iterator[tuple[str, yaml.Mark, yaml.Mark]]:
    """(dotted key, first place, second place) of keys that stand twice in one mapping.

    Keys are equal as values or as text: 1 and "1" are two keys of YAML, but one name.
    """
    if id(node) in seen:  # an alias: what it stands for has been looked at
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, child in enumerate(node.value):
            yield from _keys_twice(child, loader, f"{place}[{number}]", seen)
    if not isinstance(node, yaml.MappingNode):
        return
    known: dict[Any, yaml.Mark] = {}
    for key, value in node.value:
        name = f"{place}.{key.value}" if place else str(key.value)
        if isinstance(key, yaml.ScalarNode):
            merge = key.tag == "tag:yaml.org,2002:merge"
            # As in a tuple, so that the number 1 and the text "1" are told apart where that is wanted.
            same = {("text", key.value)} if merge else {("text", key.value), ("value", loader.construct_object(key))}
            for mark in same:
                if mark in known:
                    yield name, known[mark], key.start_mark
            known |= dict.fromkeys(same, key.start_mark)
        yield from _keys_twice(value, loader, name, seen)
