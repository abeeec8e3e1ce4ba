"""In the engine of a bf16 run: what is frozen, and every buffer, keeps its bits; what is trained is computed in bf16.

Buffers are statistics of batch norms, frequencies of rotary positions, windows of spectra: rounded, they would be
those of another encoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parallel import Engine, MoEConfig, ParallelConfig, create_mesh
from tests.ranks import run_ranks
from tests.trainer.pretrained import FAMILIES, SPECS, group_of, kind_of, objects, save_encoder
from trainer.config.encoders import PretrainedConfig
from trainer.models.layers.standardise import Constant
from trainer.models.pretrained.encoder import PretrainedEncoder
from trainer.models.pretrained.load import load_encoder


class Encoders(nn.Module):
    """Encoders side by side, and a table of statistics as models have them."""

    def __init__(self, encoders: dict[str, PretrainedEncoder]) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.scale = Constant(torch.tensor([1.001, 0.1]))
        self.project = nn.Linear(32, 2)

    def forward(self, groups: dict[str, Any]) -> Tensor:
        total = torch.zeros(2)
        for name, encoder in self.encoders.items():
            value_PND = encoder(groups[name], encoder.look(groups[name]))
            total = total + self.project(value_PND[..., :32].to(self.project.weight.dtype)).float().sum((0, 1))
        return (total * self.scale()).square().mean()


def _steps(rank: int, world: int, folder: str, families: list[str], settings: dict[str, Any]) -> list[str]:
    """What two steps in bf16 have done to a model that they must not."""
    made = {family: objects(kind_of(family), 3) for family in families}
    groups = {family: group_of(kind_of(family), own) for family, own in made.items()}
    config = {family: PretrainedConfig(source=f"{folder}/{family}", **settings) for family in families}
    model = Encoders({family: load_encoder(SPECS[kind_of(family)], own) for family, own in config.items()})
    kept = {name: value for name, value in model.named_parameters() if not value.requires_grad}
    kept |= {name: value for name, value in model.named_buffers() if value.is_floating_point()}
    kept = {name: value.detach().clone() for name, value in kept.items()}
    said = {} if settings["train"] != "none" else _said(model, groups)
    engine = Engine(model, create_mesh(ParallelConfig(), MoEConfig()), lr=1e-3, precision="bf16")
    engine.train()
    for _ in range(2):
        engine.backward(engine(groups))
        assert engine.step()
    now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    problems = [name for name, value in kept.items() if now[name].dtype != value.dtype or not now[name].equal(value)]
    problems += [name for name, value in model.named_parameters() if value.requires_grad and value.element_size() != 2]
    problems += [name for name, value in (_said(model, groups) if said else {}).items() if not value.equal(said[name])]
    return [*problems, *(f"{family}: no buffer" for family in families if _lacks(kept, family))]


def _said(model: Encoders, groups: dict[str, Any]) -> dict[str, Tensor]:
    return {name: encoder(groups[name], encoder.look(groups[name])) for name, encoder in model.encoders.items()}


def _lacks(kept: dict[str, Tensor], family: str) -> bool:
    """Whether the test has no longer what it is for: statistics, frequencies."""
    wanted = {"resnet": "running_var", "modernbert": "inv_freq"}.get(family)
    return wanted is not None and not any(f".{family}." in name and wanted in name for name in kept)


@pytest.mark.parametrize(
    "settings",
    [{"train": "none"}, {"train": "none", "dtype": "bfloat16"}, {"train": "lora", "rank": 2}, {"train": "all"}],
    ids=lambda settings: "_".join(map(str, settings.values())),
)
def test_nothing_that_is_not_trained_is_rounded(tmp_path: Path, settings: dict[str, Any]) -> None:
    families = list(FAMILIES)
    for family in families:
        save_encoder(tmp_path / family, family)
    assert run_ranks(_steps, 1, str(tmp_path), families, settings) == [[]]
