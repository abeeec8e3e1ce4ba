"""What a GPU's kernels cannot take is refused in a sentence, by numbers at and beside each limit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data_shards import open_manifest
from parallel import LocalDispatcher, MoEConfig, MoELayer
from tests.trainer.tiny import config, packed
from trainer import session
from trainer.models import gpu_limits
from trainer.models.gpu_limits import Rows, batches_at_once, refuse_many_rows
from trainer.models.layers.grouped_linear import GroupedLinear
from trainer.session import build_session
from trainer.worker.context import SingleContext


class Place(LocalDispatcher):
    """The first of so many ranks."""

    def __init__(self, size: int) -> None:
        self.size = size  # type: ignore[misc]


def layer(
    experts: int, degree: int = 1, dim: int = 16, hidden: int = 16, modalities: int = 1, **more: Any
) -> nn.Module:
    with torch.device("meta"):
        made = MoELayer(dim, MoEConfig(experts=experts, hidden=hidden, **more), modalities, dispatcher=Place(degree))
        return nn.ModuleDict({"moe": made})


def grouped(blocks: int) -> nn.Module:
    with torch.device("meta"):
        return nn.ModuleDict({"encoder": GroupedLinear(blocks, 8, 8)})


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (layer(1023), None),
        (layer(2046, degree=2), None),
        (
            layer(1024),
            "moe.experts=1024 at parallel.expert_parallel=1 puts 1,024 experts on a rank, and the grouped product of a "
            "GPU takes 1,023: spread them over at least 2 ranks by parallel.expert_parallel, or set "
            "parallel.precision=fp32, which takes them one by one",
        ),
        (
            layer(4096, degree=4),
            "moe.experts=4096 at parallel.expert_parallel=4 puts 1,024 experts on a rank, and the grouped product of a "
            "GPU takes 1,023: spread them over at least 5 ranks by parallel.expert_parallel, or set "
            "parallel.precision=fp32, which takes them one by one",
        ),
        (grouped(1023), None),
        (
            grouped(1024),
            "encoder has a matrix for each of 1,024 modalities, and the grouped product of a GPU takes 1,023 matrices: "
            "join modalities into ones of more channels, or set parallel.precision=fp32, which takes them one by one",
        ),
        (layer(8, modalities=1024), None),
        (layer(8, modalities=1023, router="per_modality"), None),
        (
            layer(8, modalities=1024, router="per_modality"),
            "moe.router=per_modality has a matrix for each of 1,024 modalities, and the grouped product of a GPU takes "
            "1,023 matrices: join modalities into ones of more channels, or set parallel.precision=fp32, which takes "
            "them one by one",
        ),
    ],
)
def test_numbers_of_matrices(model: nn.Module, sentence: str | None) -> None:
    limits = gpu_limits.gpu_limits(model)
    assert limits.refused == ([] if sentence is None else [sentence]) and limits.slow == []
    if sentence is not None:
        with pytest.raises(ValueError, match=r"grouped product of a GPU takes 1,023"):
            limits.refuse()


def test_rows_that_are_not_aligned_are_said() -> None:
    assert gpu_limits.gpu_limits(layer(8, dim=20, hidden=30)).slow == [
        "model.dim=20 is not a multiple of 8, so a GPU computes experts one by one and waits for each: 24 is faster",
        "model.moe.hidden=30 is not a multiple of 8, so a GPU computes experts one by one and waits for each: "
        "32 is faster",
    ]
    assert gpu_limits.gpu_limits(layer(12, modalities=3, router="per_modality")).slow == [
        "moe.experts=12 is not a multiple of 8, so a GPU computes routers per modality one by one and waits for each: "
        "16 is faster"
    ]


def test_rows_at_once() -> None:
    # A rank of 4, 2 micro-batches: 64 records x 10 tokens / 8; evaluation takes a batch at once.
    assert batches_at_once(10, 4, 64, 2, None) == [
        Rows(80, "raise training.accumulation"),
        Rows(160, "lower training.eval_batch_size"),
    ]
    assert batches_at_once(10, 4, 64, 2, 16)[1].tokens == 40
    model = layer(8, top_k=2, hidden=1024)
    refuse_many_rows(model, [Rows(2**20 - 1, "x")])  # (2^21 - 2) rows of 1,024
    with pytest.raises(
        ValueError, match=r"about 2,097,152 rows of 1,024 numbers at once, and .* 2\^31 numbers: less of"
    ):
        refuse_many_rows(model, [Rows(5, "x"), Rows(2**20, "less of it")])


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks are made as if the rank's device were a GPU."""
    monkeypatch.setattr(session, "uses_grouped_kernels", lambda device, precision: precision == "bf16")
    monkeypatch.setattr(session, "refuse_old_gpu", lambda device: None)


def built(tmp_path: Path, **changes: Any) -> None:
    manifest = open_manifest(packed(tmp_path / "data"))
    run = config(manifest.url, tmp_path, **changes)
    build_session(run, SingleContext("cpu"), manifest, manifest.schema, manifest.statistics["default"]).close()


def test_a_run_is_refused_before_its_first_step(tmp_path: Path, on_gpu: None) -> None:
    many = {"model__moe__experts": 1024, "model__moe__hidden": 8, "model__layers": 1}
    with pytest.raises(ValueError, match="puts 1,024 experts on a rank"):
        built(tmp_path / "bf16", parallel__precision="bf16", **many)
    built(tmp_path / "fp32", **many)  # nothing of it holds there


def test_a_run_of_too_large_a_batch_is_refused(tmp_path: Path, on_gpu: None) -> None:
    with pytest.raises(ValueError, match=r"numbers at once, .*: lower training.eval_batch_size, or use more ranks"):
        built(tmp_path, parallel__precision="bf16", training__eval_batch_size=10**8)


def test_what_is_slow_is_said(tmp_path: Path, on_gpu: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        built(tmp_path, parallel__precision="bf16", model__moe__hidden=12)
    assert "model.moe.hidden=12 is not a multiple of 8" in caplog.text


def test_the_oldest_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_limits.uses_grouped_kernels(torch.device("cuda"), "bf16")
    assert not gpu_limits.uses_grouped_kernels(torch.device("cuda"), "fp32")
    assert not gpu_limits.uses_grouped_kernels(torch.device("cpu"), "bf16")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(ValueError, match=r"needs a GPU of compute capability 8.0 or newer, and Tesla T4 is older"):
        gpu_limits.refuse_old_gpu(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    gpu_limits.refuse_old_gpu(torch.device("cuda"))
