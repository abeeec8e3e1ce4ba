"""What a pretrained encoder's forward pass costs: counted by running it on shapes alone.

Shapes: P objects, L positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def forward_flops(config: Any, shapes: dict[str, tuple[int, ...]]) -> tuple[float, tuple[int, ...]]:
    """FLOPs of a pass over inputs of these shapes, and the shape of its last hidden state.

    Args:
        config: of the model. shapes: by the names of its inputs; those of `input_ids` and of masks are whole numbers.

    Raises:
        RuntimeError, ValueError: the model cannot take them.
    """
    from transformers import AutoModel

    with torch.device("meta"), torch.no_grad():
        model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()
        whole = ("input_ids", "attention_mask")
        inputs = {
            name: torch.ones(shape, dtype=torch.int64 if name in whole else torch.float32)
            for name, shape in shapes.items()
        }
        counter = FlopCounterMode(display=False)
        with counter:
            output = model(**inputs, return_dict=True)
    return float(counter.get_total_flops()), tuple(output.last_hidden_state.shape)
