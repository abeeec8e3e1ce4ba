"""What a new model sets by training records: against means and deviations worked out apart, on any number of ranks."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

import trainer.session
from data_shards import Batch, open_manifest
from tests.ranks import run_ranks
from tests.trainer.models.tiny_model import batch_of, build
from tests.trainer.tiny import config, packed
from tests.trainer.training.test_loop import Rank
from trainer.checkpoints.checkpoint import checkpoint_weights, read_checkpoint
from trainer.checkpoints.find import committed_paths
from trainer.config.run_config import RunConfig
from trainer.jobs.job import run
from trainer.models.fusemoe.first_look import ROWS, first_look, parts_of
from trainer.models.layers.grouped_linear import Blocks
from trainer.models.layers.missing import keep_modalities
from trainer.models.numbers.first_seen import ENOUGH, LEAST_SPREAD, FirstSeen
from trainer.models.numbers.whole_signal import DEVIATION
from trainer.session import build_session
from trainer.worker.context import SingleContext

FINE = {"model__waveform__statistics": "fine_kernels"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return packed(tmp_path_factory.mktemp("looked") / "data", records=120)


def shares_of(model: Any, batches: list[Batch]) -> Tensor:
    """(P, X): what kernels answer to every signal of the batches, caught on its way into the scale."""
    caught: list[Tensor] = []
    (part,) = parts_of(model)
    handle = part.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    for batch in batches:
        model.embed(batch)
    handle.remove()
    return torch.cat(caught)


def test_each_share_is_brought_to_mean_0_and_a_small_deviation(data: str) -> None:
    manifest = open_manifest(data)
    model, batches = build(manifest, **FINE), [batch_of(manifest, 40)]
    (part,) = parts_of(model)
    set_by = first_look(model, batches)
    assert {id(parameter) for parameter in set_by} == {id(part.shift), id(part.scale)} and model.training
    x_PX = shares_of(model, batches).double()
    mean_X = torch.tensor([sum(column) / len(x_PX) for column in x_PX.T.tolist()])
    spread_X = torch.tensor(
        [
            (sum((x - float(m)) ** 2 for x in column) / len(x_PX)) ** 0.5
            for column, m in zip(x_PX.T.tolist(), mean_X, strict=True)
        ]
    )
    assert 5 < len(x_PX) < 40  # some records have no signal
    torch.testing.assert_close(part.shift[0], mean_X, rtol=0, atol=1e-5)
    torch.testing.assert_close(part.scale[0], DEVIATION / spread_X.clamp_min(LEAST_SPREAD), rtol=1e-3, atol=0)


def test_no_more_is_read_than_needed_and_nothing_where_nothing_looks(data: str) -> None:
    manifest = open_manifest(data)
    read: list[int] = []

    def batches() -> Iterator[Batch]:
        while True:
            read.append(1)
            yield batch_of(manifest, 40)

    assert first_look(build(manifest), batches()) == [] and not read
    assert len(first_look(build(manifest, **FINE), batches())) == 2
    signals = int(batch_of(manifest, 40).present_BM[:, manifest.schema.numbers["ecg"]].sum())
    assert len(read) == -(-ROWS // signals)


def test_a_modality_that_was_hardly_seen_is_left_as_it_is() -> None:
    part = FirstSeen(3, 2, 0.5)
    counts = (4, ENOUGH - 1, 0)
    part.begin()
    part(torch.tensor([[1.0, 0.0], [3.0, 0.0], [1.0, 0.0], [3.0, 0.0], [9.0, 9.0]]), Blocks.of(torch.tensor(counts)))
    assert part.finish() == [1, 2]
    assert part.shift.tolist() == [[2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert part.scale.tolist() == [[0.5, pytest.approx(0.5 / LEAST_SPREAD)], [0.5, 0.5], [0.5, 0.5]]
    found = part(torch.tensor([[5.0, 0.01], [7.0, 7.0]]), Blocks.of(torch.tensor((1, 1, 0))))
    torch.testing.assert_close(found, torch.tensor([[1.5, 0.5], [3.5, 3.5]]))


def test_a_modality_that_was_hardly_seen_is_named(data: str, caplog: pytest.LogCaptureFixture) -> None:
    manifest = open_manifest(data)
    caplog.set_level(logging.INFO)
    batch, ecg = batch_of(manifest, 40), manifest.schema.numbers["ecg"]
    first_look(build(manifest, **FINE), [batch])
    signals = int(batch.present_BM[:, ecg].sum())
    assert caplog.messages == [f"scales of waveform/2 are set by {signals} rows of training samples"]
    caplog.clear()
    keep_BM = torch.ones_like(batch.present_BM)
    keep_BM[:, ecg] = False
    first_look(build(manifest, **FINE), [keep_modalities(batch, keep_BM)])
    assert caplog.messages[0] == "scales of waveform/2 are set by 0 rows of training samples"
    assert re.match("fewer than 2 rows of ecg were among the training samples", caplog.messages[1])
    caplog.clear()
    first_look(build(manifest, **FINE), [])  # as on all ranks but the first
    assert caplog.messages == []


def _looked(rank: int, world: int, tree: dict[str, Any]) -> list[Tensor]:
    """Shift and scale as the engine is given them; DeepSpeed would make them alike by itself."""
    given, found, own = RunConfig.of(tree), list[Tensor](), trainer.session._engine

    def engine(job: Any, config: Any, model: Any, *rest: Any) -> Any:
        (part,) = parts_of(model)
        found.extend([part.shift.detach().clone(), part.scale.detach().clone()])
        return own(job, config, model, *rest)

    trainer.session._engine = engine
    manifest = open_manifest(given.data.url)
    build_session(given, Rank(rank, world), manifest, manifest.schema, manifest.statistics["default"]).close()
    return found


def test_all_ranks_have_what_one_would_have(data: str, tmp_path: Path) -> None:
    layout = {"parallel__workers": 2, "parallel__expert_parallel": 2}
    alone = config(data, tmp_path, **FINE).model_dump(mode="json")
    (one,) = run_ranks(_looked, 1, alone)
    assert float(one[0].abs().max()) > 0.1 and float(one[1].max()) > 0.2
    for found in run_ranks(_looked, 2, config(data, tmp_path, **FINE, **layout).model_dump(mode="json")):
        assert torch.equal(found[0], one[0]) and torch.equal(found[1], one[1])


def newest(folder: Path) -> tuple[LocalFileSystem, str]:
    return LocalFileSystem(), committed_paths(str(folder))[0]


def test_a_run_that_goes_on_keeps_what_it_saw(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at is learned from then on, and no second look sets it back."""
    looks: list[int] = []
    own = FirstSeen.begin

    def begin(part: FirstSeen) -> None:
        looks.append(1)
        own(part)

    monkeypatch.setattr(FirstSeen, "begin", begin)

    def at(name: str, steps: int) -> dict[str, Tensor]:
        steady = {"optim__schedule": "constant", "optim__warmup": 0}
        run(config(data, tmp_path, name=name, **FINE, **steady, training__max_steps=steps), SingleContext())
        checkpoint = read_checkpoint(*newest(tmp_path / name))
        assert checkpoint.step == steps
        found = checkpoint_weights(checkpoint)
        assert any(key.endswith("whole.norm.scale") for key in found)
        return found

    at("run", 2)
    went_on = at("run", 4)
    assert looks == [1]
    straight = at("other", 4)
    assert looks == [1, 1]
    assert all(torch.equal(went_on[key], value) for key, value in straight.items())
