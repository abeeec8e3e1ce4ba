"""Which file is which part of a folder, and which files are left: none is passed over without a word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Formatter

from data_shards.paths import absolute_path
from data_shards.sources.image_text.lines import JsonLines, Rows

PARTS = {"train": ("train",), "val": ("val", "dev", "valid", "validation"), "test": ("test",)}
LIKE_PARTS = (".jsonl", ".ndjson", ".jsonl.gz")


def json_parts(folder: Path, pattern: str, given: Mapping[str, str | None]) -> tuple[dict[str, Rows], list[str]]:
    """Part -> its records, and the names of files that look like parts and are none.

    Args:
        pattern: a file's name with {part} in it. given: part -> file's name, goes before the pattern.

    Raises:
        ValueError: no file for training, a named one that is not there, or one for two parts.
    """
    if template_fields(pattern, "file") != {"part"}:
        raise ValueError(f"option file is {pattern!r}: write {{part}} where the name of the part belongs")
    found: dict[str, Path] = {}
    for part, names in PARTS.items():
        explicit = given.get(part)
        if explicit is not None:
            found[part] = absolute_path(explicit, folder)
            if not found[part].is_file():
                raise ValueError(f"option {part}: {found[part]} is not there; {_what_there_is(folder, pattern)}")
            continue
        paths = [absolute_path(pattern.format(part=name), folder) for name in names]
        there = [path for path in paths if path.is_file()]
        found |= {part: there[0]} if there else {}
    if "train" not in found:
        name = pattern.format(part="train")
        raise ValueError(
            f"{folder} has no {name}; {_what_there_is(folder, pattern)}. Say which is which with -o train=FILE "
            "-o val=FILE -o test=FILE, or give option file or preset"
        )
    twice = [path for path in found.values() if list(found.values()).count(path) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is the file of two parts; give each its own")
    used = {path.resolve() for path in found.values()}
    left = sorted(str(path.relative_to(folder)) for path in _like_parts(folder, pattern) if path.resolve() not in used)
    return {part: JsonLines(str(path)) for part, path in found.items()}, left


def template_fields(template: str, option: str) -> set[str]:
    """Names in braces. Raises ValueError for braces that do not fit."""
    try:
        return {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ValueError(f"option {option} is {template!r}: {error}") from error


def _like_parts(folder: Path, pattern: str) -> Iterator[Path]:
    """Files of JSON lines in the folder, and where the pattern looks."""
    places = {folder, (folder / pattern).parent}
    for place in sorted(path for path in places if path.is_dir() and path.is_relative_to(folder)):
        for path in sorted(place.iterdir()):
            if path.name.lower().endswith(LIKE_PARTS) and path.is_file():
                yield path


def _what_there_is(folder: Path, pattern: str) -> str:
    found = list(_like_parts(folder, pattern)) or sorted(folder.glob("*/*.jsonl"))
    names = [str(path.relative_to(folder)) for path in found]
    return f"it has {', '.join(names[:12])}" if names else "it has no .jsonl file at all"
