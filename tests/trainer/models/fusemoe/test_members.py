"""Several heads in one: what each says, what all say together, and what each learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from data_shards import TaskSpec
from data_shards.shards.manifest import Manifest
from tests.trainer.models.tiny_model import batch_of, build
from trainer.metrics.survival import survival_at_edges
from trainer.models.fusemoe.members import Members
from trainer.models.layers.hazard import HazardLoss
from trainer.models.layers.heads import TaskLoss
from trainer.models.output import Fused
from trainer.training.step_loss import task_loss

TASKS = {
    "binary": TaskSpec("t", "binary"),
    "multiclass": TaskSpec("t", "multiclass", classes=("u", "v", "w")),
    "multilabel": TaskSpec("t", "multilabel", classes=("p", "q")),
    "regression": TaskSpec("t", "regression"),
    "survival": TaskSpec("t", "survival", edges=(1.0, 2.0, 4.0)),
}


def members_of(kind: str, members: int = 4, mean: float = 0.0, std: float = 1.0) -> Members:
    torch.manual_seed(0)
    task = TASKS[kind]
    return Members(task, members, 6, 8, 0.0, [mean] * task.dim, [std] * task.dim)


@pytest.mark.parametrize("kind", TASKS)
def test_each_member_is_a_head_of_its_own(kind: str) -> None:
    head, x_BX = members_of(kind, mean=2.0, std=3.0), torch.randn(5, 6)
    for parameter in (head.scale_out, head.shift):
        torch.nn.init.normal_(parameter)
    got = head(x_BX)
    assert got.shape == (4, 5, TASKS[kind].dim) and got.dtype == torch.float32
    for k in range(4):
        hidden = head.shared(head.norm(x_BX) * head.scale_in[k]) * head.scale_out[k] + head.shift[k]
        logits = torch.nn.functional.gelu(hidden) @ head.weight[k] + head.bias[k]
        torch.testing.assert_close(got[k], logits * 3 + 2)
    fresh = members_of(kind)(x_BX)
    assert (fresh[0] - fresh[1]).abs().max() > 0.05, "members begin apart"


@pytest.mark.parametrize("kind", TASKS)
def test_together_they_say_the_mean_of_their_probabilities(kind: str) -> None:
    logits_KBC = torch.randn(4, 5, TASKS[kind].dim, dtype=torch.float64) * 3
    got = members_of(kind).together(logits_KBC)

    def said(logits_BC: Tensor) -> Tensor:
        match kind:
            case "regression":
                return logits_BC
            case "multiclass":
                return logits_BC.softmax(-1)
            case "survival":
                return survival_at_edges(logits_BC)
        return logits_BC.sigmoid()

    expected = torch.stack([said(logits_BC) for logits_BC in logits_KBC]).mean(0)
    torch.testing.assert_close(said(got), expected)


@pytest.mark.parametrize("kind", TASKS)
def test_far_from_zero_all_numbers_are_finite(kind: str) -> None:
    head = members_of(kind)
    for far in (-80.0, 80.0):
        logits_KBC = torch.full((4, 2, TASKS[kind].dim), far, requires_grad=True)
        together = head.together(logits_KBC)
        together.sum().backward()
        assert torch.isfinite(together).all() and logits_KBC.grad is not None and torch.isfinite(logits_KBC.grad).all()
        if kind in ("binary", "multilabel", "regression"):
            assert together.tolist() == [[pytest.approx(far)] * TASKS[kind].dim] * 2


@pytest.mark.parametrize("kind", TASKS)
def test_each_learns_for_itself(kind: str) -> None:
    """The loss is the mean of theirs, each over the same records, also where a label is missing."""
    task, logits_KBC = TASKS[kind], torch.randn(3, 4, TASKS[kind].dim)
    width = {"multilabel": 2, "survival": 2}.get(kind, 1)
    target_Bt = torch.tensor([[1.0, 1.0], [0.5 if kind == "survival" else 0.0, 0.0], [1.0, 1.0], [math.nan] * 2])
    target_Bt = target_Bt[:, :width]
    weight = [1.0, 3.0] if kind == "binary" else None
    loss = HazardLoss(task) if kind == "survival" else TaskLoss(task, weight, [1.0] * task.dim)
    output = Fused({"t": logits_KBC[0]}, [], torch.zeros(4, 1), members={"t": logits_KBC})
    expected = torch.stack([loss(logits_BC, target_Bt) for logits_BC in logits_KBC]).mean()
    torch.testing.assert_close(task_loss(loss, output, "t", target_Bt), expected)
    alone = Fused({"t": logits_KBC[1]}, [], torch.zeros(4, 1))
    torch.testing.assert_close(task_loss(loss, alone, "t", target_Bt), loss(logits_KBC[1], target_Bt))


def test_a_model_of_members_answers_all_tasks_and_every_weight_learns(manifest: Manifest) -> None:
    model, batch = build(manifest, model__head__members=3, model__head__start="base"), batch_of(manifest)
    output = model(batch)
    total = torch.zeros(())
    for task in manifest.schema.tasks:
        assert output.members[task.name].shape == (3, len(batch), task.dim)
        assert output.logits[task.name].shape == (len(batch), task.dim)
        loss = TaskLoss(task, None, [1.0] * task.dim)
        total = total + task_loss(loss, output, task.name, batch.targets[task.name])
    total.backward()
    for name, parameter in model.heads.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    plain = build(manifest)
    assert plain(batch).members == {} and not any("scale_in" in name for name, _ in plain.named_parameters())
