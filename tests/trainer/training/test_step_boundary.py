"""What the loop does between two steps needs no device: on the meta device, whoever asks for a value fails."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from data_shards import StepLoader, open_manifest
from parallel import LocalDispatcher
from tests.trainer.tiny import SCHEMA, config, packed
from trainer.models.fusemoe.model import FuseMoE
from trainer.models.layers.heads import TaskLoss
from trainer.models.layers.staging import Stage
from trainer.training.loop import TrainingLoop
from trainer.training.meter import Meter
from trainer.training.progress import Progress

META = torch.device("meta")


def loop_of(run: Any, model: FuseMoE) -> Any:
    """A loop whose device holds no values."""
    made: Any = TrainingLoop.__new__(TrainingLoop)
    losses = {task.name: TaskLoss(task, None, [1.0] * task.dim) for task in SCHEMA.tasks}
    made.session = SimpleNamespace(device=META, losses=losses, tasks=list(SCHEMA.tasks))
    made.config, made.progress, made._stage = run, Progress(), Stage(model, META)
    made.context = SimpleNamespace(should_stop=lambda: False, should_save=lambda: True, rank=0)
    return made


def test_batches_are_prepared_and_labels_counted_before_the_copy(tmp_path: Path) -> None:
    manifest = open_manifest(packed(tmp_path / "data"))
    run = config(manifest.url, tmp_path, model__modality_dropout=0.4)
    model = FuseMoE(manifest.schema, [], manifest.statistics["default"], run.model, LocalDispatcher(), 0)
    step = next(StepLoader(manifest, run.data, "train", 16, 0, 1, accumulation=2).steps(0))
    loop = loop_of(run, model)
    staged = [loop._prepare(batch) for batch in step.micro_batches]
    for own, plain in zip(staged, step.micro_batches, strict=True):
        moved = own.arrived()
        assert moved.device == META and moved.plan.tokens.sample_N.device == META
        assert own.host.present_BM.sum() < plain.present_BM.sum(), "modalities are hidden on the CPU"
        assert len(moved.plan.tokens.sample_N) == len(model.lay_out(own.host).tokens.sample_N)
    counts, delivered, stop = loop._agree([own.host for own in staged], step)
    assert delivered == 16 and not stop and loop._save_wanted
    for task in SCHEMA.tasks:
        target_Bt = torch.cat([batch.targets[task.name] for batch in step.micro_batches])
        assert counts[task.name] == max(1, int((~target_Bt.isnan()).any(1).sum())) and type(counts[task.name]) is float
    assert 0 < len(loop._met) <= len(SCHEMA.tasks)


def test_a_meter_counts_batches_on_the_cpu_and_adds_up_losses_on_the_device(tmp_path: Path) -> None:
    manifest = open_manifest(packed(tmp_path / "data"))
    batch = next(StepLoader(manifest, config(manifest.url, tmp_path).data, "train", 8, 0, 1).steps(0)).micro_batches[0]

    class Records:
        features = ("records",)

        def measure(self, batch: Any) -> torch.Tensor:
            return torch.tensor([float(len(batch))], dtype=torch.float64)

        def step_flops(self, features_X: Any) -> float:
            return 0.0

    meter = Meter(META, Records(), 1, 1.0)
    for _ in range(2):
        meter.add_batch(batch)
        meter.add_losses({"loss": torch.ones((), device=META)})
        meter.end_step(8)
    assert meter.features is not None and meter.features.tolist() == [16.0]
    assert all(value.device == META for value in meter.parts.values())
