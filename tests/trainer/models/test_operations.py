"""A step of each model as a GPU would run it in bf16: nothing is added by index, and the host asks the device nothing.

The branches for GPUs are forced, and operations are looked at, not results: a CPU hides both faults.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from data_shards import Batch
from data_shards.shards.manifest import Manifest
from tests import varlen_on_cpu
from tests.gpu_branch import Found, Watch, gpu_branch
from tests.trainer.models import timed_batch
from tests.trainer.models.tiny_model import batch_of, build
from tests.trainer.tiny import SCHEMA
from trainer.models.encoders.text import TextEncoder
from trainer.models.fusemoe.block import Pooling
from trainer.models.layers import staging
from trainer.models.layers.heads import TaskLoss
from trainer.models.layers.missing import drop_modalities
from trainer.models.layers.staging import Stage
from trainer.models.output import Fused

CPU = torch.device("cpu")


LOSSES = {
    task.name: TaskLoss(task, [1.0, 2.0] if task.kind == "binary" else None, [1.0] * task.dim) for task in SCHEMA.tasks
}


def losses_of(output: Fused, batch: Batch) -> torch.Tensor:
    """All that a loss is made of, as `step_loss` does."""
    total = output.pooled_BX.float().sum()
    for name, logits_BC in output.logits.items():
        total = total + LOSSES[name](logits_BC, batch.targets[name]) / 3.0
    return total


def watched(model: nn.Module, batch: Batch) -> Watch:
    """Forward and backward of a batch that has been staged."""
    staged = Stage(model, CPU)(batch).arrived()
    with gpu_branch(), Watch() as watch:
        with watch.phase("forward"):
            total = losses_of(model(staged), staged)
        with watch.phase("backward"):
            total.backward()
    return watch


def outside_layers(found: list[Found]) -> list[Found]:
    """Without what the layers of experts do, whose own tests count it."""
    own = ("parallel/moe/segments.py", "parallel/moe/grouped_matmul.py")
    return [one for one in found if not one.where.startswith("parallel/moe/") or one.where.startswith(own)]


def adds_and_asks_nothing(watch: Watch) -> None:
    """No sum by index in low precision, none at all outside layers, no wait of the host outside them or backward."""
    assert watch.kernels["forward"] > 100 and watch.kernels["backward"] > 100
    assert watch.low_precision_scatters() == []
    # A maximum is the same in any order.
    outside = [found for found in outside_layers(watch.scatters) if found.phase == "forward"]
    assert {found.name for found in outside} == {"scatter_reduce"}
    assert outside_layers(watch.found_waits) == []
    assert watch.waits["backward"] == 0


@pytest.mark.parametrize("attention", ["per_modality", "joint", "factorized"])
@pytest.mark.parametrize(
    ("router", "granularity", "pooling"),
    [
        ("joint", "token", "attention"),
        ("per_modality", "bin", "mean"),
        ("joint", "sample", "last"),
        ("per_modality", "sample", "attention"),
    ],
)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_step_adds_nothing_by_index_and_asks_the_device_nothing(
    manifest: Manifest, attention: str, router: str, granularity: str, pooling: str, dropout: float
) -> None:
    changes = {"model__attention": attention, "model__moe__router": router, "model__moe__granularity": granularity}
    model = build(manifest, **changes, model__pooling=pooling, model__dim=16, model__heads=2).bfloat16()
    batch = batch_of(manifest)
    watch = watched(model, drop_modalities(batch, dropout, 1) if dropout else batch)
    adds_and_asks_nothing(watch)


def test_convolutions_add_nothing_by_index_and_ask_the_device_nothing(manifest: Manifest) -> None:
    model = build(manifest, model__image__network="convolutions", model__dim=16, model__heads=2).bfloat16()
    watch = watched(model, batch_of(manifest))
    adds_and_asks_nothing(watch)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_whole_series_scores_and_members_add_nothing_by_index_and_ask_nothing(
    manifest: Manifest, dropout: float
) -> None:
    """Beside the plain model's operations a few: all that is compared and added up runs along the events."""
    changes = {"model__series__statistics": "token", "model__head__start": "base"}
    batch = drop_modalities(batch_of(manifest), dropout, 1) if dropout else batch_of(manifest)
    plain = watched(build(manifest, model__dim=16, model__heads=2).bfloat16(), batch)
    for more, forward, backward in (
        ({"model__vector__numbers": "piecewise"}, 115, 15),
        ({"model__vector__numbers": "piecewise", "model__scale": "quantile"}, 115, 15),
        ({"model__head__members": 4}, 140, 75),
        ({"model__waveform__statistics": "fine_kernels"}, 1_600, 40),
        ({"model__series__statistics": "fine_kernels"}, 1_700, 40),
    ):
        watch = watched(build(manifest, **{**changes, **more}, model__dim=16, model__heads=2).bfloat16(), batch)
        assert watch.low_precision_scatters() == []
        outside = [found for found in outside_layers(watch.scatters) if found.phase == "forward"]
        assert {found.name for found in outside} == {"scatter_reduce"}
        assert outside_layers(watch.found_waits) == [] and watch.waits["backward"] == 0
        assert 0 < watch.kernels["forward"] - plain.kernels["forward"] < forward
        assert 0 < watch.kernels["backward"] - plain.kernels["backward"] < backward


@pytest.mark.parametrize("attention", ["per_modality", "joint", "factorized"])
@pytest.mark.parametrize("way", ["tokens", "mtand", "imputation", "utde"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_step_over_timed_objects_and_codes_adds_nothing_by_index_and_asks_nothing(
    attention: str, way: str, dropout: float
) -> None:
    changes = {"model__objects__irregularity": way, "model__codes__irregularity": way, "model__attention": attention}
    model = timed_batch.build(timed_batch.MOMENTS, **changes).bfloat16()
    batch = timed_batch.batch_of(timed_batch.records_of(8), timed_batch.MOMENTS, [float(i) for i in range(8)])
    adds_and_asks_nothing(watched(model, drop_modalities(batch, dropout, 1) if dropout else batch))


def test_what_is_staged_is_copied_in_two_pieces_and_asked_nothing(manifest: Manifest) -> None:
    """On the meta device there are no values: whoever asks for one fails."""
    batch = batch_of(manifest)
    model = build(manifest, model__attention="joint")
    staged = Stage(model, torch.device("meta"))(drop_modalities(batch, 0.3, 1))
    moved = staged.arrived()
    tensors = list(staging._leaves(moved.plan)) + list(moved.tensors().values())
    assert len(tensors) > 40 and {tensor.device.type for tensor in tensors} == {"meta"}
    assert len({tensor.untyped_storage()._cdata for tensor in tensors}) == 2, "one copy of the batch, one of the plan"
    assert {tensor.device.type for tensor in staged.host.tensors().values()} == {"cpu"}


def test_a_plan_travels_whole(manifest: Manifest) -> None:
    """The copy that goes to a device, made here to the CPU by way of the buffer."""
    model, batch = build(manifest, model__attention="factorized"), batch_of(manifest)
    plan = model.lay_out(batch)
    leaves = list(staging._leaves(plan))
    copied = staging._rebuilt(plan, {id(leaf): leaf.clone() for leaf in leaves})
    again = list(staging._leaves(copied))
    assert len(again) == len(leaves) and all(torch.equal(a, b) for a, b in zip(again, leaves, strict=True))
    assert copied.tokens.spans == plan.tokens.spans and copied.groups["text"].own.by_pair.order_N is None
    moved = staging.to_device({"a": torch.arange(3), "b": (torch.ones(2, 2), 5, None)}, torch.device("meta"))
    assert moved["a"].shape == (3,) and moved["a"].dtype == torch.int64 and moved["b"][1:] == (5, None)
    plain, staged = model.eval()(batch), model(Stage(model, CPU)(batch).arrived())
    assert all(torch.equal(plain.logits[name], staged.logits[name]) for name in plain.logits)


def test_a_batch_that_is_changed_loses_its_plan_and_one_that_is_moved_is_still_known(manifest: Manifest) -> None:
    model, batch = build(manifest), batch_of(manifest)
    staged = Stage(model, CPU)(batch).arrived()
    assert staged.plan is not None and drop_modalities(staged, 0.5, 3).plan is None
    moved = batch.to("meta")
    assert moved.plan is None and torch.equal(moved.on_host().present_BM, batch.present_BM)
    assert moved.on_host().groups["text"].bytes_O.device.type == "cpu"  # type: ignore[attr-defined]


def test_pooling_in_bf16_on_a_gpu_is_that_in_fp32(manifest: Manifest) -> None:
    """1,536 tokens of one sample: 34 % off where each addition is rounded."""
    model = build(manifest, model__attention="joint", model__dim=16, model__heads=2)
    torch.manual_seed(1)
    pooling = Pooling("mean", 16, 1).bfloat16()
    x_ND = torch.randn(1536, 16) + 1
    layout = model.embed(batch_of(manifest))[1]
    changed = {"sample_N": torch.zeros(1536, dtype=torch.int64), "samples": 1}
    layout = type(layout)(**{**layout.__dict__, **changed})
    with torch.no_grad(), gpu_branch():
        got = pooling(x_ND.bfloat16(), layout)
        expected = pooling.value(pooling.norm(x_ND.bfloat16())).float().mean(0, keepdim=True)
    assert float((got.float() - expected).norm() / expected.norm()) < 0.01


@pytest.mark.parametrize(
    ("what", "name"),
    [
        (nn.Embedding, "embedding_dense_backward"),
        (lambda *size: _Indexed(*size), "index_put"),
    ],
)
def test_an_embedding_of_torch_would_be_found(manifest: Manifest, what: Any, name: str) -> None:
    model = build(manifest)
    model.bin = what(*model.bin.weight.shape)
    watch = watched(model.bfloat16(), batch_of(manifest))
    assert any(name in found.name for found in watch.low_precision_scatters())


class _Indexed(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.weight[input]


def test_a_number_that_is_read_from_the_device_would_be_found(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = TextEncoder._positions

    def asking(self: TextEncoder, group: Any, by_pair: Any) -> torch.Tensor:
        assert int(group.offsets.diff().sum()) >= 0
        return plain(self, group, by_pair)

    monkeypatch.setattr(TextEncoder, "_positions", asking)
    assert outside_layers(watched(build(manifest).bfloat16(), batch_of(manifest)).found_waits)


def test_sequences_of_any_lengths_are_one_launch(manifest: Manifest) -> None:
    """One kernel for each block and each layer of the text encoder, whatever the lengths."""
    model = build(manifest, model__attention="joint", model__dim=16, model__heads=2).bfloat16()
    watch = watched(model, batch_of(manifest))
    layers = len(model.blocks) + len(model.encoders["text"].layers)  # type: ignore[arg-type]
    assert watch.by_name["forward"]["torch_attn._varlen_attn"] == layers
    assert watch.by_name["backward"]["torch_attn._varlen_attn_backward"] == layers
    assert varlen_on_cpu.MOST_SEQUENCES == 65_535
