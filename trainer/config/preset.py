"""Which keys a recipe leaves to its preset, and how a run that goes on keeps what was chosen at its start.

What is chosen, and from what, is `trainer/models/fusemoe/fitted.py`; docs/defaults.md says it in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

Preset = Literal["none", "fast", "good", "best"]

# In the order in which they are said at the start of a run.
FITTED = (
    "model.dim",
    "model.layers",
    "model.dropout",
    "model.modality_dropout",
    "model.scale",
    "model.series.statistics",
    "model.waveform.statistics",
    "model.head.start",
    "model.head.members",
    "model.head.skip",
    "optim.lr",
    "optim.ema",
    "training.batch_size",
    "training.epochs",
    "training.eval_every",
    "training.early_stopping.metric",
    "training.early_stopping.patience",
)


def left_open(tree: Mapping[str, Any]) -> list[str]:
    """Keys of `FITTED` that a recipe, as it was read, does not name."""
    return [key for key in FITTED if not _found(tree, key)[0]]


def recorded(tree: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Values of keys in a whole recipe; those that its version did not have yet are left out."""
    found = {key: _found(tree, key) for key in keys}
    return {key: value for key, (there, value) in found.items() if there}


def said(preset: str, values: Mapping[str, Any]) -> str:
    """What was chosen, for people, as overrides are written."""
    shown = ", ".join(f"{key}={'null' if value is None else value}" for key, value in values.items())
    return f"chosen (preset={preset}; name a key to choose it yourself): {shown}"


def _found(tree: Mapping[str, Any], key: str) -> tuple[bool, Any]:
    value: Any = tree
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False, None
        value = value[part]
    return True, value
