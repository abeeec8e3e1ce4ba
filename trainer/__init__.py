"""How one job learns: models, the loop, checkpoints, metrics, tracking.

`trainer.load_model(path)` opens an exported model without DeepSpeed or Ray. Names are imported on first use, so that
reading a recipe does not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.inference.export import export_model, load_model

__all__ = ["export_model", "load_model"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from trainer.inference import export

        return getattr(export, name)
    raise AttributeError(f"module 'trainer' has no attribute {name!r}")
