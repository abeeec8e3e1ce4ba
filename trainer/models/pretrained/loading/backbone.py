"""What models with a frozen backbone share: what they say about it, and what of it a checkpoint leaves out.

A trained parameter is in the optimiser and in checkpoints; a frozen one is in neither. Frozen routing keys and the
running importance are small: checkpoints hold them beside the tensors.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from trainer.models.flops import parameter_share


def keep_out_of_checkpoints(model: nn.Module) -> None:
    """Buffers of a backbone are its own: they come with it, and checkpoints of a fine-tuning job leave them out."""
    for module in model.modules():
        module._non_persistent_buffers_set.update(module._buffers)


class FrozenBackbone(nn.Module):
    """Base class. `backbone_digest` is None while nothing is frozen."""

    backbone_digest: str | None = None
    recompute = False

    def backbone_runs(self) -> list[str]:
        """MLflow ids of the runs that made the backbone."""
        raise NotImplementedError

    def needed_modalities(self) -> list[str]:
        """Modalities that every record must have."""
        return []

    def describe_backbone(self) -> dict[str, Any]:
        """Digest, runs, parameters."""
        counts = parameter_share(self)
        return {"digest": self.backbone_digest, "runs": self.backbone_runs(), "parameters": int(counts["frozen"])}


def backbone_of(model: nn.Module) -> dict[str, Any] | None:
    """Digest, runs and size of the frozen backbone; None where there is none."""
    if not isinstance(model, FrozenBackbone) or model.backbone_digest is None:
        return None
    return model.describe_backbone()


class BackboneError(ValueError):
    """A backbone is missing, cannot be loaded, or is another one than it should be. The text is one sentence."""


def digest_of(weights: dict[str, Tensor]) -> str:
    """SHA-256 of names, shapes and fp32 values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}|{tuple(value.shape)}|".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
