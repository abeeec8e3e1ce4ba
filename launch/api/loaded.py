"""An exported model in memory: a graph, which needs torch alone, or a model of this code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

GRAPH, ABOUT = "model.pt2", "graph.json"


class LoadedGraph:
    """A model as a graph of torch: tensors of a batch in, logits out, on the CPU.

    Attributes:
        about: modalities, tasks, and `inputs`, the names of tensors, as `graph.json` has them.
    """

    def __init__(self, folder: Path) -> None:
        import torch

        self.about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        self._run = torch.export.load(folder / GRAPH).module()

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits (B, C) by task.

        Args:
            tensors: as `about["inputs"]` names them: `present`, bool (B, M), `moment` where the model has moments, and
                those of each group of modalities (docs/python.md).

        Raises:
            ValueError: a tensor is missing, or there is one too many.
        """
        import torch

        wrong = sorted(set(tensors) ^ set(self.about["inputs"]))
        if wrong:
            what = "unknown" if wrong[0] in tensors else "missing"
            raise ValueError(f"tensor {wrong[0]!r} is {what}; a batch is {', '.join(self.about['inputs'])}")
        with torch.no_grad():
            # In one order: the graph was traced with it.
            found: dict[str, Tensor] = self._run({name: tensors[name] for name in self.about["inputs"]})
        return found


def load(path: str) -> Any:
    """See `fleximoe.load`."""
    folder = Path(path).expanduser().absolute()
    if (folder / ABOUT).is_file():
        return LoadedGraph(folder)
    from trainer.inference.portable.model import PortableModel

    return PortableModel(path)
