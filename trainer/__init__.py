"""How one job learns: models, the loop, checkpoints, metrics, tracking.

`trainer.load_model(path)` opens an exported model without DeepSpeed or Ray. Names are imported on first use, so that
reading a recipe does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.inference.export import export_model
    from trainer.inference.exported import load_model

__all__ = ["export_model", "load_model"]

_HOME = {"export_model": "trainer.inference.export", "load_model": "trainer.inference.exported"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'trainer' has no attribute {name!r}")
