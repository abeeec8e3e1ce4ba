"""What a pretrained encoder costs: counted by running it on shapes alone, at a few lengths.

Shapes: P objects, L positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from trainer.models.object_flops import EncoderCost
from trainer.models.pretrained.encoder import PretrainedEncoder

LONGFORMER = "longformer"
MOST_POSITIONS = 512  # of the shortest of three lengths that are counted

Polynomial = tuple[float, float, float]


def pass_cost(model: nn.Module, inputs: dict[str, Any]) -> tuple[float, float, tuple[int, ...]]:
    """FLOPs of a pass, elements that it keeps for a backward one, and the shape of the last hidden state.

    Args:
        inputs: tensors on the meta device, by name.

    Raises:
        RuntimeError, ValueError: the model cannot take them.
    """
    weights = {
        name: _without_memory(value).requires_grad_(value.requires_grad)
        for name, value in [*model.named_parameters(), *model.named_buffers()]
    }
    kept: dict[int, torch.Tensor] = {}
    own = {id(value) for value in weights.values()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in own and not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor  # held, so that no other one gets its address
        return tensor

    counter = FlopCounterMode(display=False)
    with torch.device("meta"), saved_tensors_hooks(pack, lambda tensor: tensor), counter:
        output = functional_call(model, weights, (), {**inputs, "return_dict": True})
    # Of a view all is kept that it is a view of.
    elements = sum(tensor.untyped_storage().nbytes() / tensor.element_size() for tensor in kept.values())
    return float(counter.get_total_flops()), elements, tuple(output.last_hidden_state.shape)


def _without_memory(value: torch.Tensor) -> torch.Tensor:
    """On the meta device, numbers as float32 whatever they are kept in: inputs are, and what is counted is the same."""
    return value.detach().to("meta", torch.float32 if value.is_floating_point() else value.dtype)


def encoder_cost(encoder: PretrainedEncoder) -> EncoderCost:
    """What an object asks of an encoder; of texts, whose tokens nobody has counted, by their usual number of bytes."""
    stride, extra, longest = encoder.lengths
    flops, kept = _polynomials(encoder, longest)
    passes = {"none": 1, "lora": 2, "all": 3}[encoder.config.train]
    nothing = (0.0, 0.0, 0.0)
    return EncoderCost(
        encoder.tokens, encoder.width, flops, nothing if encoder.frozen else kept, passes, stride, extra, float(longest)
    )


def _polynomials(encoder: PretrainedEncoder, longest: int) -> tuple[Polynomial, Polynomial]:
    """FLOPs and kept elements of one object by its positions."""
    if longest == 1:
        flops, kept, _ = pass_cost(encoder.model, encoder.example(1))
        return (flops, 0.0, 0.0), (kept, 0.0, 0.0)
    if encoder.name == LONGFORMER:
        return _of_windows(encoder.model)
    points = [max(1, longest // 4), max(2, longest // 2), max(3, longest)]
    points = [min(point, MOST_POSITIONS * (number + 1)) for number, point in enumerate(points)]
    found = [pass_cost(encoder.model, encoder.example(point)) for point in points]
    return _fitted(points, [one[0] for one in found]), _fitted(points, [one[1] for one in found])


def _fitted(points: list[int], values: list[float]) -> Polynomial:
    """The polynomial of degree 2 through three points."""
    at_XX = torch.tensor([[1.0, point, point * point] for point in points], dtype=torch.float64, device="cpu")
    once, each, square = torch.linalg.solve(at_XX, torch.tensor(values, dtype=torch.float64, device="cpu")).tolist()
    return once, each, square


def _of_windows(model: nn.Module) -> tuple[Polynomial, Polynomial]:
    """Of Longformer, which asks its input for tokens that see everything, and so cannot be run on shapes alone."""
    config: Any = model.config
    weights = sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear))
    width, hidden = int(config.hidden_size), int(config.intermediate_size)
    flops = 2.0 * weights + sum(8.0 * int(window) * width for window in config.attention_window)
    kept = len(config.attention_window) * (10.0 * width + 2 * hidden)
    kept += sum(3.0 * int(window) * int(config.num_attention_heads) for window in config.attention_window)
    return (0.0, flops, 0.0), (0.0, kept, 0.0)
