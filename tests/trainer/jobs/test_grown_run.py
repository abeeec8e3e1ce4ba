"""A run whose data set has grown: on as before, moved to the newer version, or told what its choices are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.finished_run import newest_checkpoint
from data_shards import StepLoader, open_manifest, pack
from data_shards.shards.versions import versions_of
from tests.trainer.jobs.test_train import job, losses, weights
from tests.trainer.tiny import Tiny, TinyOptions, config
from trainer.checkpoints.find import open_checkpoint
from trainer.run_folder import stored_result

RUN = {"model__dropout": 0.0, "model__moe__noise": 0.0, "training__trace_records": True, "training__batch_size": 5,
       "training__checkpoint": {"every": 1, "keep_last": 9, "keep_best": 1}, "training__epochs": 2}  # fmt: skip


class Stretch(Tiny):
    """Some of the records."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__(TinyOptions())
        self.numbers = range(start, stop)

    def units(self) -> Sequence[Any]:
        return self.numbers


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """24 records, 16 of them of the training part; 30 more come later, 20 of them of that part."""
    folder = str(tmp_path_factory.mktemp("grown") / "data")
    pack(Stretch(0, 24), folder, chunk_records=6)
    return folder


def traced(storage: Path) -> dict[int, tuple[int, list[str]]]:
    """Step -> epoch, and the records of all ranks; the last word on a step counts."""
    found: dict[int, dict[str, Any]] = {}
    for path in sorted((storage / "run" / "records").iterdir()):
        for line in map(json.loads, path.read_text().splitlines()):
            found.setdefault(line["step"], {})[path.name] = (line["epoch"], line["keys"])
    own = {step: list(ranks.values()) for step, ranks in found.items()}
    return {step: (ranks[0][0], sorted(key for _, keys in ranks for key in keys)) for step, ranks in own.items()}


def ordered(url: str, epoch: int) -> list[list[str]]:
    manifest = open_manifest(url)
    loader = StepLoader(manifest, config(url, Path()).data, "train", 5)
    return [sorted(key for batch in step.micro_batches for key in batch.keys) for step in loader.steps(epoch)]


@pytest.mark.long
def test_on_the_old_version_or_moved_to_the_new_one(data: str, tmp_path: Path) -> None:
    once, kept, moved = (tmp_path / name for name in ("once", "kept", "moved"))
    for storage in (once, kept, moved):
        job(2, config(data, storage, **RUN), stop_at=2)
    job(1, config(data, once, **RUN))
    first = open_manifest(data)
    pack(Stretch(24, 54), data, append=True, chunk_records=6)
    second, old = open_manifest(data), versions_of(data)[0].url
    with pytest.raises(AssertionError, match=rf"has grown since: go on with .* data.url={old}, or .* data.follow=true"):
        job(1, config(data, kept, **RUN))
    # On the old one: as if nothing had happened
    job(1, config(old, kept, **RUN))
    assert losses(kept) == losses(once) and traced(kept) == traced(once)
    for name, value in weights(once).items():
        np.testing.assert_array_equal(weights(kept)[name], value, err_msg=name)
    # Moved: the epoch that was begun ends, the next one is an epoch of the new version, in its order
    job(2, config(data, moved, data__follow=True, **RUN))
    own = traced(moved)
    assert [own[step][1] for step in (1, 2)] == ordered(old, 0)[:2]
    wanted = [(epoch, keys) for epoch in (1, 2) for keys in ordered(data, epoch)][: 2 * 8 - 2]
    assert [own[step] for step in range(3, 17)] == wanted and len(own) == 16
    seen = Counter(key for step in range(3, 11) for key in own[step][1])
    assert set(seen.values()) == {1} and len(seen) == second.splits["default"]["train"] == 36
    result = newest_checkpoint(str(moved / "run"))
    assert result.meta["data_digest"] == second.digest
    assert result.meta["progress"]["moves"] == [{"step": 2, "from": first.digest, "to": second.digest, "left": [0, 10]}]
    # What the model has learned to scale by stays; scores begin anew, so the best is one of the new version
    train = first.statistics["default"].modalities["age"]
    assert result.meta["statistics"]["modalities"]["age"]["mean"] == pytest.approx(train.mean)
    best = open_checkpoint(str(moved / "run"))
    assert best.step >= 2 and best.meta["ranked_by"]["data"] == second.digest
    assert stored_result(str(moved / "run"))["metrics"]["test/records"] == second.splits["default"]["test"] == 9
    lines = [json.loads(line) for line in (moved / "run" / "metrics.jsonl").read_text().splitlines()]
    said = [line["tags"] for line in lines if "dataset.moved" in line.get("tags", {})]
    assert len(said) == 1 and said[0]["dataset.moved"].startswith(f"moved at step 2 from data {first.digest[:12]} to")
    assert "10 samples of epoch 0 had been taken, the rest of it is left out" in said[0]["dataset.moved"]
    assert [line["tags"]["dataset.version"] for line in lines if "dataset.version" in line.get("tags", {})] == [
        "1",
        "2",
    ]
    # It has moved: it goes on there without being told again, and not back
    job(1, config(data, moved, **RUN | {"training__epochs": 3}))
    assert newest_checkpoint(str(moved / "run")).meta["statistics"] == result.meta["statistics"]
    with pytest.raises(AssertionError, match="the data changed; give the run another name"):
        job(1, config(old, moved, **RUN | {"training__epochs": 3}))
