"""A checkpoint into an engine: every element of every parameter and buffer, or a sentence and nothing changed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.checkpoint_scale import Blocks, CountedFiles, Rank, checkpoint_at, write
from parallel import Fragment
from trainer.checkpoints import restore as module
from trainer.checkpoints.checkpoint import Checkpoint
from trainer.checkpoints.pieces import CheckpointError, ForeignCheckpointError
from trainer.checkpoints.restore import check_whole, load_engine, restore

MODEL = Blocks(blocks=1, dim=8, experts=4)


class Whole(Rank):
    """The only rank; its fragments are live tensors, which hold NaN at first."""

    def __init__(self) -> None:
        super().__init__(MODEL, 0, 1, 1)
        self.mesh = SimpleNamespace(rank=0)
        self.live = super().fragments()
        for fragment in self.live:
            for role in (fragment.master, fragment.exp_avg, fragment.exp_avg_sq):
                role.fill_(torch.nan)
        self.stored: dict[str, torch.Tensor] = {}
        self.optimizer_step, self.copied = 0, 0

    def fragments(self) -> list[Fragment]:
        return self.live

    def buffers(self) -> dict[str, torch.Tensor]:
        return self.stored

    def after_restore(self) -> None:
        self.copied += 1


def test_every_element_is_filled(tmp_path: Path) -> None:
    write(str(tmp_path), MODEL, 4, 2)
    engine: Any = Whole()
    load_engine(checkpoint_at(str(tmp_path)), engine)
    assert engine.optimizer_step == 1 and engine.copied == 1
    for live, right in zip(engine.live, Rank(MODEL, 0, 1, 1).fragments(), strict=True):
        for role in ("master", "exp_avg", "exp_avg_sq"):
            assert torch.equal(getattr(live, role), getattr(right, role))


def test_a_parameter_that_no_rank_holds_all_of_is_named(tmp_path: Path) -> None:
    """Nothing may stay as the model was made, for experts may have been left without values."""
    write(str(tmp_path), MODEL, 1, 1)
    engine: Any = Whole()
    check_whole(engine)
    name, size = engine.live[-1].name, engine.live[-1].numel
    engine.live.pop()
    with pytest.raises(
        CheckpointError, match=rf"nothing was loaded: the ranks hold 0 of the {size} elements of param.* {name}"
    ):
        load_engine(checkpoint_at(str(tmp_path)), engine)
    with pytest.raises(CheckpointError, match="nothing was loaded"):
        restore(str(tmp_path), [checkpoint_at(str(tmp_path)).path], engine, lambda ok: ok, lambda checkpoint: None)
    assert engine.copied == 0 and all(bool(fragment.master.isnan().all()) for fragment in engine.live)


def test_a_buffer_of_another_size_is_named(tmp_path: Path) -> None:
    write(str(tmp_path), MODEL, 1, 1)
    engine, checkpoint = Whole(), checkpoint_at(str(tmp_path))
    engine.stored = {"nudges": torch.zeros(3)}
    for stored, problem in (
        ({}, "nudges is only in the model"),
        ({"nudges": [1.0]}, "nudges has 1 elements .* and 3 in"),
    ):
        with pytest.raises(ForeignCheckpointError, match=problem):
            load_engine(Checkpoint(checkpoint.fs, checkpoint.path, {**checkpoint.meta, "buffers": stored}), engine)  # type: ignore[arg-type]
    load_engine(
        Checkpoint(checkpoint.fs, checkpoint.path, {**checkpoint.meta, "buffers": {"nudges": [1.0, 2.0, 3.0]}}), engine
    )  # type: ignore[arg-type]
    assert engine.stored["nudges"].tolist() == [1, 2, 3]


def test_a_storage_that_is_away_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint before is not taken for one that could not be reached."""
    write(str(tmp_path), MODEL, 1, 1)
    path = checkpoint_at(str(tmp_path)).path

    def away(*where: Any) -> Checkpoint:
        raise PermissionError("the storage says no")

    monkeypatch.setattr(module, "read_checkpoint", away)
    with pytest.raises(OSError, match="the storage says no"):
        restore(str(tmp_path), [path], Whole(), lambda ok: ok, lambda checkpoint: None)  # type: ignore[arg-type]


def test_only_the_first_rank_reads_what_all_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one of two gets description and index by a broadcast, and reads its own part."""
    write(str(tmp_path), MODEL, 2, 2)
    files = CountedFiles()
    checkpoint = Checkpoint(files, checkpoint_at(str(tmp_path)).path, checkpoint_at(str(tmp_path)).meta)
    index, engine = checkpoint.index(), Whole()
    engine.mesh.rank = 1
    monkeypatch.setattr(module, "broadcast_json", lambda value: None)
    monkeypatch.setattr(module, "broadcast_bytes", lambda data: index if data == b"" else pytest.fail("it has read"))
    files.requests = 0
    load_engine(checkpoint, engine)  # type: ignore[arg-type]
    assert files.requests == 2, "one file of each of two ranks"
