"""What options are said to keep for the backward pass, beside what they do keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from data_shards.shards.manifest import Manifest
from parallel import LocalDispatcher
from tests.saved_activations import saved_bytes
from tests.trainer.models.tiny_model import batch_of
from tests.trainer.tiny import config
from trainer.models.flops import FlopCounter
from trainer.models.fusemoe.activations import activations
from trainer.models.fusemoe.model import FuseMoE


def kept(manifest: Manifest, **changes: Any) -> tuple[float, float]:
    """(measured, modelled) bytes of a batch outside of blocks, of which there are none, in fp32."""
    run = config(manifest.url, Path("unused"), model__dim=64, model__dropout=0.1, **changes)
    torch.manual_seed(0)
    tasks = {task.name: task.dim for task in manifest.schema.tasks}
    model = FuseMoE(manifest.schema, list(tasks), manifest.statistics["default"], run.model, LocalDispatcher(), 0)
    model.blocks = torch.nn.ModuleList()
    batch, counter = batch_of(manifest, 32), FlopCounter(manifest.schema, tasks, run.model, "joint")
    found = activations(counter, counter.measure(batch).tolist(), 4, cpu=True)
    return saved_bytes(model, batch), found.encoders + found.heads


@pytest.mark.parametrize(
    "changes",
    [
        {"model__series__statistics": "token"},
        {"model__series__statistics": "fine_kernels"},
        {"model__vector__numbers": "piecewise"},
        {"model__head__members": 8},
        {"model__waveform__statistics": "kernels"},
        {"model__waveform__statistics": "fine_kernels"},
    ],
)
def test_what_an_option_adds_is_near_what_it_keeps(manifest: Manifest, changes: dict[str, Any]) -> None:
    plain, more = kept(manifest), kept(manifest, **changes)
    measured, modelled = (after - before for before, after in zip(plain, more, strict=True))
    assert measured > 2_000
    assert modelled / measured == pytest.approx(1, abs=0.1)
