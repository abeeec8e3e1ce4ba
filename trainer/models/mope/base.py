"""What models with a frozen backbone share: what they say about it, what of their state a checkpoint must hold.

A trained parameter is in the optimiser and in checkpoints; a frozen one is in neither. Frozen routing keys and the
running importance are small: checkpoints hold them beside the tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from data_shards import Batch

STATE = ("keys_QK", "keys_MQK", "mean_LK", "steps_1")


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

    def state_names(self) -> list[str]:
        """Buffers that go into a checkpoint."""
        return [name for name, _ in self.named_buffers() if name.rsplit(".", 1)[-1] in STATE]

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Everything that was trained, and the frozen keys."""
        trained = {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}
        buffers = dict(self.named_buffers())
        return trained | {name: buffers[name] for name in self.state_names()}

    def describe_backbone(self) -> dict[str, Any]:
        """Digest, runs, parameters."""
        counts = self.parameter_share()
        return {"digest": self.backbone_digest, "runs": self.backbone_runs(), "parameters": int(counts["frozen"])}

    def parameter_share(self) -> dict[str, float]:
        """Numbers of trained and frozen parameters, and the trained ones over all of the backbone's."""
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in self.parameters() if not p.requires_grad)
        return {"trained": trained, "frozen": frozen, "share": trained / max(1, frozen or trained)}


class RecordFlops:
    """Arithmetic of models whose cost is about the same for every record."""

    features: tuple[str, ...] = ("records",)

    def __init__(self, each: float) -> None:
        self.each = each

    def measure(self, batch: Batch) -> Tensor:
        """(1,) float64: records."""
        return torch.tensor([float(len(batch))], dtype=torch.float64, device=batch.device)

    def step_flops(self, features_X: Tensor) -> float:
        """FLOPs of forward and backward."""
        return float(features_X[0]) * self.each
