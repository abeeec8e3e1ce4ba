"""A graph in ONNX: written from a program of torch, and run by ONNX Runtime. To run one neither torch nor anything else
of ours is needed: this file imports nothing before it is used.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

MOST_BYTES = 1 << 31
"""Of one file of ONNX, as protobuf reads it; more would lie in further files beside it."""
OPSET = 18


class OnnxGraph:
    """A file of ONNX, ready to run on the CPU.

    Args:
        inputs, outputs: names of tensors and of tasks, as `graph.json` has them.

    Raises:
        ValueError: ONNX Runtime is not installed.
    """

    def __init__(self, path: Path, outputs: Sequence[str]) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError(
                f"{path} is a graph of ONNX, and running it needs an extra ({error}): pip install 'fleximoe[onnx]'"
            ) from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; it warns of what it folds away
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs, self._outputs = [own.name for own in self._session.get_inputs()], list(outputs)

    def __call__(self, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Logits (B, C) by task; of arrays, or tensors on the CPU, by name."""
        import numpy as np

        said = self._session.run(self._outputs, {name: np.asarray(tensors[name]) for name in self._inputs})
        return dict(zip(self._outputs, said, strict=True))


def write_onnx(
    program: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str], path: Path
) -> None:
    """Write a program as one file, which ONNX's own checker has accepted.

    Raises:
        ValueError: the extra is not installed, an operator cannot be in ONNX, or one file cannot hold the weights.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch needs it)
    except ImportError as error:
        raise ValueError(f"ONNX needs an extra ({error}): pip install 'fleximoe[onnx]'") from None
    import torch

    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size >= MOST_BYTES:
        raise ValueError(
            f"the model has {size / 2**30:.1f} GiB of weights, and one file of ONNX holds 2 GiB: export it as pt2"
        )
    logs, level = logging.getLogger("torch.onnx"), logging.getLogger("torch.onnx").level
    logs.setLevel(logging.ERROR)  # it warns of libraries that are not there
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program, dynamo=True, input_names=list(inputs), output_names=list(outputs), opset_version=OPSET,
                optimize=False, verbose=False,
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        raise ValueError(f"ONNX cannot hold this model: {_reason(error)}; export it as pt2") from error
    finally:
        logs.setLevel(level)
    assert made is not None
    made.save(str(path), external_data=False)
    onnx.checker.check_model(str(path), full_check=True)


def _reason(error: BaseException) -> str:
    """The innermost cause in a line: which operator."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200]
