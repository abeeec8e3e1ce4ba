"""Steps dealt by tokens: the same losses, every record once, also for a run that was begun dealing by records."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from data_shards import open_manifest
from data_shards.shards.reader import read_index
from tests.ranks import run_ranks
from tests.trainer.tiny import config, packed
from trainer.config.run_config import RunConfig
from trainer.jobs.job import run
from trainer.training.record_trace import delivered
from trainer.worker.context import SingleContext

STEADY: dict[str, Any] = {
    "model__dropout": 0.0,
    "model__moe__noise": 0.0,
    "training__epochs": 3,
    "training__trace_records": True,
}


class Rank(SingleContext):
    """One of several ranks; asks to stop during the step of this number."""

    def __init__(self, rank: int, world: int, stop_at: int | None) -> None:
        super().__init__("cpu")
        self.rank, self.world, self.local_rank = rank, world, rank
        self.stop_at, self.asked = stop_at, 0

    def should_stop(self) -> bool:
        self.asked += 1
        return self.asked == self.stop_at


def _job(rank: int, world: int, tree: dict[str, Any], stop_at: int | None) -> dict[str, Any]:
    return run(RunConfig.of(tree), Rank(rank, world, stop_at))


def job(world: int, chosen: RunConfig, stop_at: int | None = None) -> dict[str, Any]:
    result: dict[str, Any] = run_ranks(_job, world, chosen.model_dump(mode="json"), stop_at)[0]
    return result


def logged(storage: Path, name: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (storage / "run" / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["metrics"][name] for line in lines if name in line.get("metrics", {})}


def shares(storage: Path, rank: int) -> list[list[str]]:
    path = storage / "run" / "records" / f"rank-{rank:05d}.jsonl"
    return [json.loads(line)["keys"] for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return packed(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def train_keys(data: str) -> list[str]:
    manifest = open_manifest(data)
    index, column = read_index(manifest, 0), manifest.column("default", "train")
    return [key for key, member in zip(index.keys, index.members(column), strict=True) if member]


def close(a: dict[int, float], b: dict[int, float]) -> bool:
    return a.keys() == b.keys() and max(abs(a[step] - b[step]) / a[step] for step in a) < 1e-5


def test_ranks_with_shares_of_different_size_learn_the_same(tmp_path: Path, train_keys: list[str]) -> None:
    """Alone, three ranks by records, three by tokens: losses, balance losses, validation, and who got what."""
    data = packed(tmp_path / "sparse", missing=0.75)  # records of very different size
    sixteen = {**STEADY, "training__batch_size": 16, "model__missing_embedding": False}
    job(1, config(data, tmp_path / "alone", **sixteen))
    found = {}
    for deal in ("records", "tokens"):
        chosen = config(data, tmp_path / deal, **sixteen, parallel__workers=3, training__deal=deal)
        found[deal] = job(3, chosen)
        for name in ("train/loss", "val/loss", "train/grad_norm"):
            assert close(logged(tmp_path / "alone", name), logged(tmp_path / deal, name)), name
        assert delivered(chosen.run_dir) == {epoch: Counter(train_keys) for epoch in range(3)}
    sizes = {deal: {len(keys) for rank in range(3) for keys in shares(tmp_path / deal, rank)} for deal in found}
    assert sizes["records"] == {5, 6} and sizes["tokens"] == {4, 5, 6, 7}
    ratio, most = logged(tmp_path / "tokens", "data/token_ratio"), logged(tmp_path / "tokens", "data/most_tokens")
    assert ratio.keys() == most.keys() == set(range(1, 7)) and all(1 <= value < 1.2 for value in ratio.values())
    assert logged(tmp_path / "records", "data/token_ratio") == {} == logged(tmp_path / "alone", "data/token_ratio")
    assert found["tokens"]["metrics"] == pytest.approx(found["records"]["metrics"], rel=1e-4)


@pytest.mark.long
def test_a_run_of_an_earlier_version_goes_on_with_the_same_global_batches(
    data: str, tmp_path: Path, train_keys: list[str]
) -> None:
    """Begun by records on two ranks, stopped within an epoch, then by tokens on three, then alone."""
    job(1, config(data, tmp_path / "whole", **STEADY))
    moved = tmp_path / "moved"
    job(2, config(data, moved, **STEADY, parallel__workers=2, training__deal="records"), stop_at=3)
    middle = config(data, moved, **STEADY, parallel__workers=3)
    assert job(3, middle, stop_at=3)["step"] == 6
    last = job(1, config(data, moved, **STEADY))
    assert (last["status"], last["step"], last["samples"]) == ("finished", 12, 96)
    assert close(logged(tmp_path / "whole", "train/loss"), logged(moved, "train/loss"))
    assert delivered(middle.run_dir) == {epoch: Counter(train_keys) for epoch in range(3)}


def test_micro_batches_of_different_size_learn_the_same(data: str, tmp_path: Path) -> None:
    """Without balance losses, which are means over micro-batches."""
    plain = {**STEADY, "model__moe__balance": 0.0, "model__moe__entropy": 0.0, "model__moe__z": 0.0}
    job(1, config(data, tmp_path / "one", **plain))
    job(2, config(data, tmp_path / "two", **plain, training__accumulation=3, parallel__workers=2))
    assert close(logged(tmp_path / "one", "train/loss"), logged(tmp_path / "two", "train/loss"))


def test_a_bound_on_tokens_is_said_with_figures(data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    chosen = config(data, tmp_path, training__accumulation=2, training__max_tokens=20, training__epochs=1)
    run(chosen, SingleContext("cpu"))
    most = logged(tmp_path, "data/most_tokens")
    assert len(most) == 4 and min(most.values()) > 20
    enough = -(-int(most[1]) * 2 // 20)
    assert caplog.text.count("training.max_tokens is 20") == 1
    assert f"a micro-batch holds {int(most[1])} tokens" in caplog.text
    assert f"set training.accumulation to {enough} or more" in caplog.text
