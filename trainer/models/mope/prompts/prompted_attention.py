"""Prompts inside attention: as a prefix of keys and values, or through a softmax and a gate of their own.

For the content tokens, a prompt row that enters a layer and leaves after it acts through its key and its value only.
A prefix of keys and values is therefore the same as prepending tokens, and cheaper. With a gate the content's own
attention stays untouched and attention over the prompts is added, times tanh(g); g = 0 at the start is an exact
identity whose derivative is not zero.

Windows (Swin) arrive sample after sample: the first n rows of the batch are the windows of sample 0. Prompts of a
sample are repeated for its windows in that order; any other order hands them to other samples.

Shapes: B samples, W windows of a sample, H heads, N tokens, P prompt rows, E width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trainer.models.layers.attention import scaled_dot_product


def prompted_attention(
    q_WHNE: Tensor,
    k_WHNE: Tensor,
    v_WHNE: Tensor,
    prompts: tuple[Tensor, Tensor] | None,
    mask: Tensor | None,
    scale: float | None,
    gate: Tensor | None,
) -> Tensor:
    """Attention of content over content and prompts.

    Args:
        q_WHNE: and keys, values: (B * W, H, N, E), windows of a sample together.
        prompts: keys and values (B, H, P, E); None = plain attention.
        mask: bool or float, broadcastable to (B * W, H, N, N).
        gate: (H,) or (1,), before tanh; None = one softmax over content and prompts.
    """
    if prompts is None:
        return scaled_dot_product(q_WHNE, k_WHNE, v_WHNE, mask, scale)
    windows = len(q_WHNE) // len(prompts[0])
    key, value = (part.repeat_interleave(windows, 0) if windows > 1 else part for part in prompts)
    if gate is not None:
        content = scaled_dot_product(q_WHNE, k_WHNE, v_WHNE, mask, scale)
        added = scaled_dot_product(q_WHNE, key, value, None, scale)
        return content + gate.tanh().view(1, -1, 1, 1).to(added.dtype) * added
    if mask is not None:
        free = True if mask.dtype == torch.bool else 0.0
        mask = functional.pad(mask.expand(*mask.shape[:-1], k_WHNE.shape[2]), (key.shape[2], 0), value=free)
    return scaled_dot_product(q_WHNE, torch.cat([key, k_WHNE], 2), torch.cat([value, v_WHNE], 2), mask, scale)
