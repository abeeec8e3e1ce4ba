"""Which parameters travel together."""

from __future__ import annotations

import torch
from torch import nn

from parallel.config import MoEConfig
from parallel.engine.deepspeed_config import parameter_groups
from parallel.engine.stages import stages_of
from parallel.mesh import MeshSpec
from parallel.moe.layer import MoELayer


class Told(nn.Module):
    """Four layers, of which the middle two are stages; the first layer's bias and the second's are one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.a, self.b, self.after = (nn.Linear(2, 2) for _ in range(4))
        self.a.bias = self.before.bias
        self.b.weight = self.a.weight
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)

    def stages(self) -> list[list[nn.Module]]:
        return [[self.a], [self.b]]


def test_each_parameter_is_in_one_stage_and_a_shared_one_where_it_is_complete_last() -> None:
    names = [[name for name, _ in stage.parameters] for stage in stages_of(Told())]
    assert names == [["before.weight", "before.bias", "after.weight", "after.bias"], ["a.weight"], ["b.bias"]]


def test_a_model_that_tells_nothing_is_one_stage() -> None:
    stages = stages_of(nn.Linear(2, 3))
    assert [[name for name, _ in stage.parameters] for stage in stages] == [["weight", "bias"]]
    assert stages[0].modules == []


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        moe = MoEConfig(experts=4, top_k=2, hidden=8)
        self.encoder = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(MoELayer(4, moe, 1, layer) for layer in range(3))
        for block in self.blocks:
            for parameter in block.experts.parameters():
                parameter.allreduce = False  # type: ignore[attr-defined]

    def stages(self) -> list[list[nn.Module]]:
        return [[block] for block in self.blocks]


def test_optimizer_groups_are_those_of_stages_experts_and_decay() -> None:
    model = Blocks()
    spec = MeshSpec(2, 2, 4, 2)
    groups = parameter_groups(stages_of(model), spec, 0.1, lambda name, parameter: parameter.ndim == 1)
    short = {id(parameter): name.split(".experts")[0] for name, parameter in model.named_parameters()}
    found = [(group["name"], group["weight_decay"], {short[id(p)] for p in group["params"]}) for group in groups]
    assert found[:2] == [("dense", 0.0, {"encoder.bias"}), ("dense", 0.1, {"encoder.weight"})]
    for number in range(3):
        experts = [f for f in found if f[0] == "ep_size_2" and f[2] == {f"blocks.{number}"}]
        assert [f[1] for f in experts] == [0.1], "stacked weights have three dimensions"
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
