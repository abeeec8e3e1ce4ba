"""Checkpoints of the first format are read, continued, evaluated and verified; newer ones than this are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.checkpoint_scale import Blocks, CountedFiles, checkpoint_at, read, value_of, write
from tests.trainer.checkpoints.first_format import as_first_format, write_json
from tests.trainer.jobs.test_train import job
from tests.trainer.tiny import config, packed
from trainer.checkpoints.checkpoint import FORMAT, Checkpoint, checkpoint_weights
from trainer.checkpoints.evaluation_recipe import evaluation_config
from trainer.checkpoints.find import committed_paths, open_checkpoint
from trainer.checkpoints.listing import list_checkpoints
from trainer.checkpoints.pieces import CheckpointError, Wanted

MODEL = Blocks(blocks=1, dim=8, experts=4)


def test_any_interval_of_an_earlier_checkpoint_is_read(tmp_path: Path) -> None:
    write(str(tmp_path), MODEL, 2, 1)
    old = as_first_format(checkpoint_at(str(tmp_path)), 3)
    assert old.meta["format"] == 1 and FORMAT == 2
    assert len(list(Path(old.path).iterdir())) == 2 * 3 + 2
    read(str(tmp_path), MODEL, 4, 2, check=True)
    files = CountedFiles()
    reader, index = Checkpoint(files, old.path, old.meta), old.index()
    name = "backbone.blocks.0.moe.experts.w1_EDH"  # 256 elements in three pieces
    wanted = [Wanted(name, "exp_avg", start, 5) for start in range(0, 250, 5)]
    values = torch.cat(reader.reader(index).read_all(wanted))
    assert np.array_equal(values.numpy(), value_of(list(MODEL.parameters()).index(name), 1, 0, 250))
    assert files.requests == 3, "each piece once"


def test_gaps_and_damage_of_an_earlier_checkpoint_are_noticed(tmp_path: Path) -> None:
    write(str(tmp_path), MODEL, 2, 1)
    old = as_first_format(checkpoint_at(str(tmp_path)), 2)
    rows = json.loads(old.index())
    name = "backbone.blocks.0.moe.experts.w1_EDH"
    holed = [row for row in rows if (row["name"], row["start"]) != (name, 128)]
    with pytest.raises(CheckpointError, match=rf"it holds 128 of the 256 elements of {name}, master"):
        old.reader(json.dumps(holed).encode()).read(name, "master", 0, 256)
    assert [row.problem for row in list_checkpoints(str(tmp_path), verify=True)] == [None]
    file = Path(old.path) / "rank-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    (row,) = list_checkpoints(str(tmp_path), verify=True)
    assert "rank-00001.safetensors, bytes " in str(row.problem) and "do not match their digest" in str(row.problem)


def test_a_run_goes_on_from_an_earlier_checkpoint(tmp_path: Path) -> None:
    data = packed(tmp_path / "data")
    whole = job(1, config(data, tmp_path / "whole"))
    run = config(data, tmp_path / "old")
    job(1, run, stop_at=3)
    old = as_first_format(open_checkpoint(run.run_dir), 3)
    weights = checkpoint_weights(old)
    assert weights.keys() == checkpoint_weights(open_checkpoint(whole["checkpoint"])).keys()
    before = job(1, evaluation_config(old))["metrics"]
    assert before["test/loss"] > 0
    result = job(1, run)
    assert result["metrics"] == whole["metrics"], "bit for bit"
    newest = open_checkpoint(committed_paths(run.run_dir)[0])
    assert newest.meta["format"] == 2


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    write(str(tmp_path), MODEL, 1, 1)
    newer = checkpoint_at(str(tmp_path))
    digest = write_json(newer.fs, f"{newer.path}/checkpoint.json", {**newer.meta, "format": 3})
    newer.fs.pipe_file(f"{newer.path}/COMMIT", digest.encode())
    with pytest.raises(CheckpointError, match="has checkpoint format 3, not 2: use the version that wrote it"):
        checkpoint_at(str(tmp_path))
