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
from tests.trainer.models import timed_batch
from tests.trainer.tiny import config, packed
from trainer.models.flops import FlopCounter, parameter_counts
from trainer.models.fusemoe.model import FuseMoE, resolve_attention
from trainer.models.layers.ragged import Ragged
from trainer.models.layers.token_layout import UnevenSpan
from trainer.worker.devices import DEVICES, find_device, measured_peak

WHOLE: dict[str, Any] = {
    "model__series__statistics": "token",
    "model__scale": "quantile",
    "model__vector__numbers": "piecewise",
    "model__waveform__statistics": "fine_kernels",
    "model__head__members": 8,
}
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
        {"model__image__network": "convolutions", "model__image__layers": 2},
        WHOLE,
        {**WHOLE, "model__attention": "factorized", "model__series__irregularity": "imputation", "model__bins": 5},
        {**WHOLE, "model__attention": "per_modality", "model__series__irregularity": "mtand"},
        {**WHOLE, "model__series__statistics": "fine_kernels"},
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
    if run.model.series.statistics == "fine_kernels":
        laid = batch.plan if batch.plan is not None else model.lay_out(batch)
        widest = max(spec.width for spec in manifest.schema.modalities if spec.kind == "series")
        assert features[counter.features.index("cells/series")] == laid.groups["series"].own.rows * widest > 0
    x_ND, layout = model.embed(batch)
    if run.model.attention != "per_modality":
        bins = run.model.bins if run.model.attention == "factorized" else 1
        of_N = layout.sample_N * bins + (layout.bin_N if bins > 1 else 0)
        assert features[counter.features.index("squares")] == float(torch.bincount(of_N).double().square().sum())
    assert counter.count_tokens(dict(zip(counter.features, features.tolist(), strict=True))) == len(x_ND)


def test_what_small_parts_add_is_what_torch_counts(manifest: Manifest) -> None:
    """The token of whole series, steps of features, members of heads: within a hundredth nobody would see them."""
    tasks = {task.name: task.dim for task in manifest.schema.tasks}
    batch = None
    found: dict[str, list[tuple[int, float]]] = {"encoders": [], "heads": []}
    for changes in (
        {},
        {"model__series__statistics": "token"},
        {"model__series__statistics": "fine_kernels"},
        {"model__vector__numbers": "piecewise"},
    ):
        run = config(manifest.url, Path("unused"), **changes)
        model = FuseMoE(manifest.schema, list(tasks), manifest.statistics["default"], run.model, LocalDispatcher(), 0)
        batch = batch or next(StepLoader(manifest, run.data, "train", 16, 0, 1).steps(0)).micro_batches[0]
        counter = FlopCounter(manifest.schema, tasks, run.model, "joint")
        with FlopCounterMode(display=False, custom_mapping=KERNELS) as seen, torch.no_grad():
            model.embed(batch)
        parts = counter.forward_flops(counter.measure(batch))
        found["encoders"].append((seen.get_total_flops(), parts["encoders"] + parts["kernels"]))
    for members, skip in ((1, "none"), (5, "none"), (1, "linear")):
        run = config(manifest.url, Path("unused"), model__head__members=members, model__head__skip=skip)
        model = FuseMoE(manifest.schema, list(tasks), manifest.statistics["default"], run.model, LocalDispatcher(), 0)
        counter = FlopCounter(manifest.schema, tasks, run.model, "joint")
        pooled_BX = torch.zeros(len(batch), model.pooling.width)  # type: ignore[arg-type]
        with FlopCounterMode(display=False) as seen, torch.no_grad():
            for head in model.heads.values():
                head(pooled_BX, pooled_BX[:, : run.model.dim])
        found["heads"].append((seen.get_total_flops(), counter.forward_flops(counter.measure(batch))["heads"]))  # type: ignore[arg-type]
    for (torch_before, before), *others in found.values():
        for torch_after, after in others:
            assert after - before == torch_after - torch_before > 0


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


@pytest.mark.parametrize("way", ["tokens", "mtand", "imputation", "utde"])
@pytest.mark.parametrize("attention", ["per_modality", "joint", "factorized"])
def test_count_of_timed_objects_is_what_torch_counts(way: str, attention: str) -> None:
    changes = {"model__objects__irregularity": way, "model__codes__irregularity": way, "model__attention": attention}
    if way == "utde":
        changes |= {"model__image__network": "convolutions"}
    model = timed_batch.build(**WIDE, **changes)
    batch = timed_batch.batch_of(timed_batch.records_of(12, most=8))
    counter = FlopCounter(timed_batch.SCHEMA, {"died": 1, "days": 1}, model.config, attention)
    features = counter.measure(batch)
    with FlopCounterMode(display=False, custom_mapping=KERNELS) as seen, torch.no_grad():
        model(batch)
    x_ND, layout = model.embed(batch)
    values = dict(zip(counter.features, features.tolist(), strict=True))
    assert counter.count_tokens(values) == len(x_ND) and values["indicators"] == len(x_ND) - layout.encoded
    if attention != "per_modality":
        of_N = layout.sample_N * 4 + (layout.bin_N if attention == "factorized" else 0)
        assert values["squares"] == float(torch.bincount(of_N).double().square().sum())
    # torch sees the rectangles of sequences of about the same length, which are up to a fifth wider than these.
    across = layout.within_sample if attention == "joint" else layout.within_bin
    values["squares"] = cells(across)
    for span, name in zip(layout.spans, model.layout, strict=True):
        if isinstance(span, UnevenSpan):
            values[f"within/{name}"] = cells(span.within)
    flops = sum(counter.forward_flops(list(values.values())).values())
    assert flops == pytest.approx(seen.get_total_flops(), rel=0.01)  # texts too
    objects = [number for name, number in values.items() if name.startswith(("pairs/timed", "codes/"))]
    assert len(objects) == 5 + 2 and min(objects) > 5


def cells(layout: Ragged | None) -> float:
    """Of the rectangles in which sequences attend."""
    return sum(bucket.sequences * bucket.length**2 for bucket in layout.buckets) if layout is not None else 0.0


def test_tokens_of_timed_objects_by_hand() -> None:
    """Two notes of 2 tokens in the first bin and one in the last; no drug, which is one token; a letter unseen."""
    record = {"note": [(0.1, b"a"), (0.2, b"b"), (9.0, b"c")], "drug": [], "letter": []}
    model = timed_batch.build(model__text__tokens=2, model__attention="factorized", model__missing_embedding=False)
    counter = FlopCounter(timed_batch.SCHEMA, {}, model.config, "factorized")
    values = dict(zip(counter.features, counter.measure(timed_batch.batch_of([record])).tolist(), strict=True))
    assert values["tokens/timed_text"] == 3 * 2 + 1 and values["within/timed_text"] == 6**2 + 1
    assert values["tokens/timed_codes"] == 1 and values["pairs/timed_text"] == 3 and values["positions"] == 3
    assert values["squares"] == 4**2 + (2 + 1 + 1) ** 2
