"""Counted FLOPs against those that torch sees in real forward passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from data_shards import StepLoader, open_manifest
from data_shards.shards.manifest import Manifest
from parallel import LocalDispatcher
from tests.trainer.tiny import config, packed
from trainer.models.flops import FlopCounter, parameter_counts
from trainer.models.fusemoe.model import FuseMoE, resolve_attention
from trainer.worker.devices import DEVICES, find_device, measured_peak

WIDE: dict[str, Any] = {"model__dim": 64, "model__moe__hidden": 128, "model__moe__experts": 8}


def _attention(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(q, k, v)


# The counter does not know the name of the CPU's attention kernel.
KERNELS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return open_manifest(packed(tmp_path_factory.mktemp("flops") / "data"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__attention": "factorized", "model__missing_embedding": False, "model__layers": 3},
        {"model__attention": "per_modality", "model__series__irregularity": "mtand", "model__ffn_hidden": 64},
        {"model__moe__granularity": "bin", "model__moe__top_k": 3, "model__series__irregularity": "imputation"},
        {"model__moe__router": "per_modality", "model__moe__shared_expert_hidden": 48, "model__moe__noise": 0.0},
        {"model__text__layers": 2, "model__pooling": "mean", "model__vector__tokens": 2},
    ],
)
def test_count_is_what_torch_counts(manifest: Manifest, changes: dict[str, Any]) -> None:
    run = config(manifest.url, Path("unused"), **WIDE, **changes)
    tasks = {task.name: task.dim for task in manifest.schema.tasks}
    model = FuseMoE(manifest.schema, list(tasks), manifest.statistics["default"], run.model, LocalDispatcher(), 0)
    batch = next(StepLoader(manifest, run.data, "train", 16, 0, 1).steps(0)).micro_batches[0]
    counter = FlopCounter(manifest.schema, tasks, run.model, resolve_attention(run.model, 7))
    features = counter.measure(batch)
    with FlopCounterMode(display=False, custom_mapping=KERNELS) as seen, torch.no_grad():
        model(batch)
    assert sum(counter.forward_flops(features).values()) == pytest.approx(seen.get_total_flops(), rel=0.02)
    x_ND, _ = model.embed(batch)
    assert counter.count_tokens(dict(zip(counter.features, features.tolist(), strict=True))) == len(x_ND)


def test_backward_is_twice_forward(manifest: Manifest) -> None:
    run = config(manifest.url, Path("unused"), **WIDE)
    tasks = {task.name: task.dim for task in manifest.schema.tasks}
    model = FuseMoE(manifest.schema, list(tasks), manifest.statistics["default"], run.model, LocalDispatcher(), 0)
    batch = next(StepLoader(manifest, run.data, "train", 16, 0, 1).steps(0)).micro_batches[0]
    counter = FlopCounter(manifest.schema, tasks, run.model, "joint")
    with FlopCounterMode(display=False) as seen:
        sum(value.sum() for value in model(batch).logits.values()).backward()  # type: ignore[union-attr]
    # The first layers of encoders have no gradient of their input, and attention's backward pass recomputes scores.
    assert counter.step_flops(counter.measure(batch)) == pytest.approx(seen.get_total_flops(), rel=0.1)


def test_active_parameters_are_those_a_token_meets() -> None:
    shapes = {"blocks.0.moe.experts.w1": (8, 4, 6), "blocks.0.moe.router.gate.prototypes": (1, 4, 8), "head.bias": (3,)}
    assert parameter_counts(shapes, 2) == {"total": 227, "experts": 192, "active": 83}


def test_devices() -> None:
    assert find_device("H100").bf16 == 989e12
    with pytest.raises(ValueError, match="known are b200, h200"):
        find_device("h1000")
    assert len({device.name for device in DEVICES}) == len(DEVICES)
    assert measured_peak(torch.device("cpu"), torch.float32, size=64) > 1e6
