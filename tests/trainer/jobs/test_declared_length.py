"""Waveforms packed as the docs say, without a largest length, against the same ones with their true one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from data_shards import StepLoader, open_manifest, pack
from data_shards.shards.manifest import Manifest
from data_shards.sources.tables.source import Tables, TablesOptions
from launch.plan.cost import CostModel, Layout
from parallel import LocalDispatcher
from tests.allocations import Allocations
from tests.trainer.jobs.test_train import job
from tests.trainer.tiny import changed
from trainer.checkpoints.evaluation_recipe import evaluation_config
from trainer.checkpoints.find import open_checkpoint
from trainer.config.run_config import RunConfig
from trainer.models.fusemoe.model import FuseMoE
from trainer.worker.devices import find_device

RECORDS, LONGEST = 16, 640


def lengths() -> list[int]:
    return [LONGEST - 30 * i for i in range(RECORDS)]


def packed_waves(folder: Path, declared: int | None) -> Manifest:
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["id,wav,y,split"]
    for i, length in enumerate(lengths()):
        # What is to be learned is the direction of time: stairs up, or down, one step a patch.
        steps = np.linspace(-1, 1, -(-length // 16))[:: 1 if i % 2 else -1].repeat(16)[:length]
        np.save(folder / f"w{i}.npy", (steps + 0.05 * rng.standard_normal(length)).astype(np.float32))
        rows.append(f"r{i:02d},w{i}.npy,{i % 2},{'test' if i > 12 else 'val' if i > 9 else 'train'}")
    (folder / "rows.csv").write_text("\n".join(rows) + "\n")
    audio = {"kind": "waveform", "column": "wav", "rate": 8000} | ({"max_length": declared} if declared else {})
    mapping = {
        "name": "waves",
        "records": {"file": "rows.csv", "key": "id"},
        "modalities": {"audio": audio},
        "tasks": {"y": {"kind": "binary", "column": "y"}},
        "split": {"columns": {"default": "split"}},
    }
    (folder / "mapping.yaml").write_text(yaml.safe_dump(mapping))
    pack(Tables(TablesOptions(path=str(folder / "mapping.yaml"))), str(folder / "packed"))
    return open_manifest(str(folder / "packed"))


@pytest.fixture(scope="module")
def packed_twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Manifest]:
    folder = tmp_path_factory.mktemp("waves")
    return packed_waves(folder / "default", None), packed_waves(folder / "true", LONGEST)


def recipe(manifest: Manifest, storage: Path) -> RunConfig:
    tree = {
        "name": "run",
        "data": {"url": manifest.url},
        "model": {"dim": 16, "heads": 2, "layers": 1, "dropout": 0.0, "moe": {"experts": 4, "hidden": 16}},
        "training": {"epochs": 2, "batch_size": 8, "storage": str(storage)},
        "tracking": {"mlflow": False},
    }
    return changed(tree, {})


def test_pack_records_the_real_lengths(packed_twice: tuple[Manifest, Manifest]) -> None:
    default, true = packed_twice
    assert [m.schema.modalities[0].max_length for m in packed_twice] == [10_000_000, LONGEST]
    assert default.lengths == true.lengths == {"audio": {"longest": LONGEST, "total": sum(lengths())}}


def test_a_step_is_the_same_and_its_memory_follows_the_samples(
    packed_twice: tuple[Manifest, Manifest], tmp_path: Path
) -> None:
    outputs, largest = [], []
    for manifest in packed_twice:
        run = recipe(manifest, tmp_path)
        batch = next(StepLoader(manifest, run.data, "train", 8, 0, 1, shuffle=False).steps(0)).micro_batches[0]
        torch.manual_seed(0)
        model = FuseMoE(manifest.schema, ["y"], manifest.statistics["default"], run.model, LocalDispatcher(), 0)
        with Allocations() as seen:
            logits = model(batch).logits["y"]
            logits.sum().backward()
        outputs.append(
            torch.cat(
                [logits.detach().flatten(), *(p.grad.flatten() for p in model.parameters() if p.grad is not None)]
            )
        )
        largest.append(seen.largest)
    assert torch.equal(*outputs)
    samples = sum(lengths()[:8])
    # A patch of 16 samples is at most twice the model's width of 16; one patch a signal may be begun.
    assert largest[0] == largest[1] <= 2 * samples + 8 * 2 * 16


def test_a_run_learns_which_way_time_goes(packed_twice: tuple[Manifest, Manifest], tmp_path: Path) -> None:
    """Both classes have the same patches, and what tells them apart is which come first."""
    results = []
    for name, manifest in zip(("default", "true"), packed_twice, strict=True):
        run = recipe(manifest, tmp_path / name)
        run.training.epochs = 40
        run.optim.lr = 0.01
        results.append(job(1, run)["metrics"])
    assert results[0] == results[1]
    assert (results[0]["test/accuracy"], results[0]["test/records"]) == (1.0, 3)
    # A model of the one is a model of the other: the most that may be packed is no part of it.
    checkpoint = open_checkpoint(str(tmp_path / "default" / "run"))
    other = job(1, evaluation_config(checkpoint, packed_twice[1].url))["metrics"]
    assert other["test/loss"] == results[0]["test/loss"]


def test_plans_are_of_the_real_lengths(packed_twice: tuple[Manifest, Manifest], tmp_path: Path) -> None:
    costs = []
    for manifest in packed_twice:
        run = recipe(manifest, tmp_path)
        model = CostModel(run, manifest.schema, manifest.statistics["default"], find_device("h100"))
        patches = dict(zip(model.counter.features, model.features, strict=True))["patches/waveform/1"]
        train = lengths()[:10]
        # Of a last patch that is not full, half is taken to be there.
        assert patches == pytest.approx(8 * (sum(train) / len(train) + 7.5) / 16)
        assert patches == pytest.approx(8 * np.mean([-(-n // 16) for n in train]), rel=0.05)
        costs.append(model.cost(Layout(1, 1, 1, 1, False)))
    assert costs[0].bytes == costs[1].bytes and costs[0].flops == costs[1].flops
