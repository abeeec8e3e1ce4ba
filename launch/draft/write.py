"""A draft as text: a mapping file whose uncertain entries are marked, and a recipe to begin with."""

from __future__ import annotations

from typing import Any

from data_shards.yaml_file import to_yaml
from launch.draft.draft import Draft

SURE = "# sure?"
_ABOUT = {
    "split": "parts of the data; records of one group are in one part",
    "modalities": "what a record may have; all keys: docs/sources.md",
    "tasks": "what is to be predicted",
}


def mapping_text(draft: Draft) -> str:
    """The mapping file; `pack tables` reads it as it stands."""
    lines = ["# Drafted from the tables in this folder. Look at every line that is marked " + SURE]
    for key, value in draft.tree.items():
        if key in _ABOUT:
            lines += ["", f"# {_ABOUT[key]}"]
        lines += _doubts(draft, key, "")
        if key in ("modalities", "tasks"):
            lines.append(f"{key}:")
            for name, section in value.items():
                lines += _doubts(draft, f"{key}.{name}", "  ")
                lines.append("  " + _entry(name, section))
        else:
            lines.append(_entry(key, value))
    if "tasks" not in draft.tree:
        lines += ["", *_doubts(draft, "tasks", ""), "# tasks:", "#   NAME: {kind: binary, column: COLUMN}"]
    if draft.left_out:
        lines += ["", "# left out:", *(f"{SURE} {what}" for what in draft.left_out)]
    return "\n".join(lines) + "\n"


def recipe_text(data: str) -> str:
    """A recipe for the packed data, in which everything that is not said is chosen from them."""
    place = to_yaml({"data": {"url": data}}, one_line=True).strip()[1:-1]
    return f"""# All that is not said here is chosen from the data, and said when training starts: docs/defaults.md
{place}   # where `pack tables` put it
preset: good   # fast, good or best
# Every other key, docs/recipe_keys.md, can be said, too:
# model: {{dim: 64, layers: 2}}
# training: {{epochs: 20, batch_size: 32}}
"""


def _entry(name: str, value: Any) -> str:
    """`name: value` on one line, values in braces."""
    return to_yaml({name: value}, one_line=True).strip()[1:-1]


def _doubts(draft: Draft, place: str, indent: str) -> list[str]:
    return [f"{indent}{SURE} {what}" for what in draft.doubts.get(place, [])]
