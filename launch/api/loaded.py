"""An exported model in memory: a graph, which needs torch or ONNX Runtime alone, or a model of this code."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

GRAPHS, ABOUT = ("model.pt2", "model.onnx"), "graph.json"


class LoadedGraph:
    """A model as one graph, of torch or of ONNX: tensors of a batch in, logits out, on the CPU.

    Attributes:
        about: modalities, tasks, and `inputs`, the names of tensors, as `graph.json` has them.
    """

    def __init__(self, folder: Path) -> None:
        self.about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        path = folder / self.about.get("graph", GRAPHS[0])
        if path.name not in GRAPHS or not path.is_file():
            raise ValueError(f"{folder} holds no graph of this version, though {ABOUT} is there: export the run again")
        if path.suffix == ".onnx":
            from trainer.inference.portable.graph.onnx_graph import OnnxGraph

            self._run: Any = OnnxGraph(path, [task["name"] for task in self.about["tasks"]])
        else:
            self._run = _of_torch(path)

    def __call__(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Logits (B, C) by task: tensors, or, of a graph of ONNX, arrays of numpy.

        Args:
            tensors: of torch, of a graph of ONNX also arrays, as `about["inputs"]` names them: `present`, bool (B, M),
                `moment` where the model has moments, and those of each group of modalities (docs/serving.md).

        Raises:
            ValueError: a tensor is missing, or there is one too many.
        """
        wrong = sorted(set(tensors) ^ set(self.about["inputs"]))
        if wrong:
            what = "unknown" if wrong[0] in tensors else "missing"
            raise ValueError(f"tensor {wrong[0]!r} is {what}; a batch is {', '.join(self.about['inputs'])}")
        # In one order: the graph was traced with it.
        found: dict[str, Any] = self._run({name: tensors[name] for name in self.about["inputs"]})
        return found


def _of_torch(path: Path) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    import torch

    run = torch.export.load(path).module()

    def without_gradients(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            found: dict[str, Tensor] = run(tensors)
        return found

    return without_gradients


def load(path: str) -> Any:
    """See `fleximoe.load`."""
    folder = Path(path).expanduser().absolute()
    if (folder / ABOUT).is_file():
        return LoadedGraph(folder)
    from launch.api.errors import speaking
    from trainer.ensemble.portable import open_export

    return speaking(open_export)(path)
