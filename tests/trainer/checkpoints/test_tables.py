"""Rows of spread tables and their moments through a checkpoint that was really written, at any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from parallel import init_distributed
from parallel.moe.initial import check_filled, undrawn
from tests.parallel.state import assemble, read_state
from tests.parallel.tables.runs import Case, make_engine, train_plain, train_steps
from tests.ranks import run_ranks
from trainer.checkpoints.checkpoint import checkpoint_weights, read_checkpoint
from trainer.checkpoints.restore import load_engine
from trainer.checkpoints.writer import CheckpointWriter
from trainer.worker.mailbox import job_mailbox

pytestmark = pytest.mark.together

SAVED_AT, STEPS = 4, 7
META = {"step": SAVED_AT, "score": None, "ranked_by": None, "progress": {}, "mlflow_run_id": None}
CASE = Case(2, 2)


def _save(rank: int, world: int, folder: str) -> tuple[list[float], str]:
    """Losses of a run that is saved on its way, and where."""
    init_distributed("cpu", 60)
    engine = make_engine(rank, world, CASE)
    train_steps(engine, CASE, rank, world, 0, SAVED_AT)
    writer = CheckpointWriter(folder, rank, world, "attempt", 1, 0, mailbox=job_mailbox())
    writer.save(engine, META)
    losses, _ = train_steps(engine, CASE, rank, world, SAVED_AT, STEPS)
    assert writer.settle(), writer.failed
    return losses, writer.path(SAVED_AT)


def _load(rank: int, world: int, path: str, cases: list[Case]) -> list[Any]:
    init_distributed("cpu", 60)
    checkpoint, found = read_checkpoint(fsspec.filesystem("file"), path), []
    for case in cases:
        with undrawn():
            engine = make_engine(rank, world, case, seed=99)
        load_engine(checkpoint, engine)
        check_filled(engine.module)
        losses, _ = train_steps(engine, case, rank, world, SAVED_AT, STEPS)
        found.append((losses, read_state(engine)))
        engine.close()
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], str]:
    losses, path = run_ranks(_save, 2, str(tmp_path_factory.mktemp("run")))[0]
    return losses, path


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_run_goes_on_at_every_layout(saved: tuple[list[float], str], world: int) -> None:
    losses, path = saved
    degrees = [degree for degree in (1, 2, 4) if world % degree == 0]
    # With tables that are whole, too: a checkpoint does not know how they were spread.
    cases = [*(Case(degree) for degree in degrees), Case(spread_above=1000)]
    expected = train_plain(CASE, STEPS)
    ranks = run_ranks(_load, world, path, cases)
    for i, case in enumerate(cases):
        state = assemble([rank[i][1] for rank in ranks])
        for rank in ranks:
            np.testing.assert_allclose(rank[i][0], losses, rtol=0, atol=2e-6)
            if world == 2 and case == Case(2):
                assert rank[i][0] == losses, "bits of the same layout"
        for name in ("tables.drugs.weight", "tables.wards.weight"):
            for role in ("master", "exp_avg", "exp_avg_sq"):
                np.testing.assert_allclose(state[name][role], expected[f"{name}|{role}"], rtol=0, atol=2e-6)


def test_its_weights_are_whole_tables_as_dense_adamw_has_them(saved: tuple[list[float], str]) -> None:
    """What evaluation, prediction and export read: every row up to date, also those that no late step has used."""
    weights = checkpoint_weights(read_checkpoint(fsspec.filesystem("file"), saved[1]))
    expected = train_plain(CASE, SAVED_AT)
    for name in ("tables.drugs.weight", "tables.wards.weight"):
        assert weights[name].shape == (41, 8)
        np.testing.assert_allclose(weights[name].numpy(), expected[f"{name}|master"], rtol=0, atol=2e-6)


def test_the_folder_holds_no_word_of_ranks_or_blocks(saved: tuple[list[float], str]) -> None:
    meta = read_checkpoint(fsspec.filesystem("file"), saved[1]).meta
    assert meta["parameters"]["tables.drugs.weight"] == [41, 8]
    assert sorted(p.suffix for p in Path(saved[1]).iterdir()) == ["", ".json", *[".safetensors"] * 3]
