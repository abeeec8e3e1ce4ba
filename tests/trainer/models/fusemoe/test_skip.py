"""What reaches the answer past all fusion: nothing at first, then a linear function of each modality's last tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from data_shards.shards.manifest import Manifest
from tests.trainer.models.timed_batch import batch_of as timed_batch
from tests.trainer.models.timed_batch import build as build_timed
from tests.trainer.models.timed_batch import records_of
from tests.trainer.models.tiny_model import batch_of, build
from trainer.models.fusemoe.block import last_tokens
from trainer.models.layers.heads import Skip
from trainer.models.layers.token_layout import TokenLayout

SKIP = {"model__head__skip": "linear", "model__series__statistics": "token"}


def last_tokens_reference(x_ND: Tensor, layout: TokenLayout) -> Tensor:
    """The obvious loop over tokens."""
    total_BD = torch.zeros(layout.samples, x_ND.shape[1], dtype=torch.float64)
    for x_D, sample, final in zip(x_ND.double(), layout.sample_N.tolist(), layout.final_N.tolist(), strict=True):
        if final:
            total_BD[sample] += x_D
    return total_BD


@pytest.mark.parametrize("members", [1, 3])
def test_a_skip_starts_at_nothing_and_adds_what_it_has_learned(manifest: Manifest, members: int) -> None:
    batch = batch_of(manifest)
    plain = build(manifest, **{**SKIP, "model__head__skip": "none"}, model__head__members=members).eval()
    model = build(manifest, **SKIP, model__head__members=members).eval()
    with torch.no_grad():
        before, after = plain(batch), model(batch)
        for task in manifest.schema.tasks:
            assert torch.equal(before.logits[task.name], after.logits[task.name])
        x_ND, layout = model.embed(batch)
        first_BD = last_tokens_reference(x_ND, layout)
        for task in manifest.schema.tasks:
            head = model.heads[task.name]
            assert isinstance(head.skip, Skip)
            head.skip.weight.normal_(std=0.1)
            scale = head.std() if head.scaled else 1.0
            added_BC = (first_BD @ head.skip.weight.double().T).float() * scale
            found = model(batch)
            if members > 1:
                got, was = found.members[task.name], before.members[task.name]
                torch.testing.assert_close(got, was + added_BC, rtol=1e-5, atol=1e-5)
            else:
                torch.testing.assert_close(found.logits[task.name], before.logits[task.name] + added_BC)


def test_every_task_learns_its_own_skip(manifest: Manifest) -> None:
    model, batch = build(manifest, **SKIP), batch_of(manifest)
    sum(logits_BC.sum() for logits_BC in model(batch).logits.values()).backward()  # type: ignore[union-attr]
    for task in manifest.schema.tasks:
        gradient: Any = model.heads[task.name].skip.weight.grad  # type: ignore[union-attr]
        assert gradient.shape == (task.dim, model.config.dim)
        assert gradient.abs().sum() > 0
    assert not any("skip" in name for name, _ in build(manifest).named_parameters())


def test_last_tokens_of_objects_at_times_are_those_of_a_loop_also_in_half_precision() -> None:
    model = build_timed(model__objects__irregularity="tokens", model__codes__irregularity="utde").eval()
    with torch.no_grad():
        x_ND, layout = model.embed(timed_batch([*records_of(6), {}]))
    expected = last_tokens_reference(x_ND, layout)
    torch.testing.assert_close(last_tokens(x_ND, layout).double(), expected, rtol=1e-5, atol=1e-5)
    half = x_ND.bfloat16()
    found = last_tokens(half, layout)
    assert found.dtype == torch.float32  # summed in fp32, and rounded no more than its tokens were
    torch.testing.assert_close(found.double(), last_tokens_reference(half, layout), rtol=1e-5, atol=1e-5)
