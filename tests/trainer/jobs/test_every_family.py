"""Runs with an encoder of every family inside, on two ranks with spread experts: killed, continued; and in bf16."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards import DatasetSchema, ModalitySpec, Record, TaskSpec, pack
from data_shards.sources.base import Source, SourceOptions
from tests.ranks import run_ranks
from tests.trainer.jobs.test_train import FixedContext, job, losses, weights
from tests.trainer.pretrained import FAMILIES, RATE, SIDE, WORDS, kind_of, save_encoder
from tests.trainer.tiny import config
from trainer.checkpoints.find import open_checkpoint
from trainer.config.run_config import RunConfig
from trainer.jobs.job import run

KINDS: dict[str, dict[str, Any]] = {
    "text": {"max_length": 80},
    "image": {"shape": (3, SIDE, SIDE), "dtype": "uint8"},
    "waveform": {"shape": (1,), "rate": RATE, "max_length": 4000},
}
SCHEMA = DatasetSchema(
    "families",
    tuple(ModalitySpec(family, kind_of(family), **KINDS[kind_of(family)]) for family in FAMILIES),  # type: ignore[arg-type]
    (TaskSpec("label", "binary"),),
)
RECORDS, STEPS, DIES_AT = 24, 4, 4
RUN: dict[str, Any] = {
    "training__max_steps": STEPS, "training__epochs": 9, "training__checkpoint": {"every": 2, "keep_last": 9},
    "training__eval_every": 100, "parallel__workers": 2, "parallel__expert_parallel": 2, "model__layers": 1,
}  # fmt: skip


class Families(Source):
    """Records with a modality for each family; some are missing."""

    Options = SourceOptions
    schema = SCHEMA

    def units(self) -> Sequence[Any]:
        return range(RECORDS)

    def read(self, unit: Any, notes: Counter[str]) -> Iterator[Record]:
        rng = np.random.default_rng([7, unit])
        made = {
            "text": lambda: " ".join(rng.choice(WORDS[5:], int(rng.integers(1, 9)))),
            "image": lambda: rng.integers(0, 256, (3, SIDE, SIDE)).astype(np.uint8),
            "waveform": lambda: (rng.normal(size=(int(rng.integers(900, 1500)), 1)) * 0.1).astype(np.float32),
        }
        values = {family: made[kind_of(family)]() for family in FAMILIES}
        kept = rng.random(len(values)) > 0.3
        present = {name: value for (name, value), keep in zip(values.items(), kept, strict=True) if keep}
        part = "test" if unit % 6 == 5 else "val" if unit % 6 == 4 else "train"
        yield Record(f"r{unit:02d}", present, {"label": float(unit % 2)}, {"default": part})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    pack(Families(SourceOptions()), str(folder / "data"), chunk_records=4)
    for family in FAMILIES:
        save_encoder(folder / family, family)
    return folder


def recipe(place: Path, storage: Path, train: str, **changes: Any) -> RunConfig:
    encoders = {family: {"source": str(place / family), "train": train, "rank": 2} for family in FAMILIES}
    return config(str(place / "data"), storage, model__encoders=encoders, **RUN, **changes)


class Killed(FixedContext):
    """Dies in the middle of a step, as a worker whose memory is taken."""

    def should_stop(self) -> bool:
        self.asked += 1
        if self.asked == DIES_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return False


def _killed(rank: int, world: int, tree: dict[str, Any]) -> bool:
    """Rank 0 dies; whether the other one finds out."""
    context = Killed(rank, world) if rank == 0 else FixedContext(rank, world)
    with contextlib.suppress(RuntimeError):
        run(RunConfig.of(tree), context)
        return False
    return True


@pytest.mark.long
@pytest.mark.parametrize("train", ["none", "lora", "all"])
def test_a_killed_run_of_all_families_continues_to_the_same_bits(place: Path, tmp_path: Path, train: str) -> None:
    whole = job(2, recipe(place, tmp_path / "whole", train))
    broken = recipe(place, tmp_path / "broken", train)
    assert run_ranks(_killed, 2, broken.model_dump(mode="json"), lost=[0]) == [None, True]
    assert max(losses(tmp_path / "broken")) < STEPS, "it did not come to its end"
    last = job(2, broken)
    assert last["step"] == STEPS and last["metrics"] == whole["metrics"]
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert expected.keys() == got.keys() and all(np.array_equal(expected[name], got[name]) for name in expected)
    # Of each family: nothing that is frozen, LoRA's factors, or all of it.
    held = [name.removesuffix(" master") for name in expected if name.endswith(" master")]
    for family in FAMILIES:
        own = [name for name in held if name.startswith(f"encoders.own_{family}.") and ".pretrained." in name]
        lora = [name for name in own if ".lora_" in name]
        assert {"none": not own, "lora": bool(own) and own == lora, "all": len(own) > 8 and not lora}[train], family
    assert set(open_checkpoint(str(tmp_path / "whole" / "run")).meta["encoders"]) == set(FAMILIES)
