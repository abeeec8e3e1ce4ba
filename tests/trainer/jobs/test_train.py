"""Whole runs on several ranks: stopped and continued anywhere, they end as if nothing had happened."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.finished_run import newest_checkpoint
from data_shards import Record, StepLoader, open_manifest, pack
from data_shards.shards.reader import read_index
from tests.object_store import local_s3
from tests.ranks import run_ranks
from tests.trainer.tiny import Tiny, config, packed
from trainer.checkpoints.evaluation_recipe import evaluation_config
from trainer.checkpoints.find import committed_paths, open_checkpoint
from trainer.checkpoints.listing import list_checkpoints
from trainer.checkpoints.pieces import CheckpointError
from trainer.config.run_config import RunConfig
from trainer.inference.export import export_model
from trainer.inference.exported import load_model
from trainer.jobs.job import run
from trainer.metrics.scores import task_metrics
from trainer.run_folder import stored_result
from trainer.worker.start_clock import StartClock

STEADY = {"model__dropout": 0.0, "model__moe__noise": 0.0, "training__epochs": 3}


class FixedContext:
    """Rank and world as given; asks to stop, or to save, during the step of this number."""

    def __init__(self, rank: int, world: int, stop_at: int | None = None, save_at: int | None = None) -> None:
        self.rank, self.world, self.local_rank, self.device = rank, world, rank, torch.device("cpu")
        self.stop_at, self.save_at, self.asked, self.start = stop_at, save_at, 0, StartClock()

    def should_stop(self) -> bool:
        self.asked += 1
        return self.stop_at is not None and self.asked >= self.stop_at and self.rank == self.world - 1

    def should_save(self) -> bool:
        return self.save_at is not None and self.asked == self.save_at and self.rank == self.world - 1


def _job(rank: int, world: int, tree: dict[str, Any], *asked_at: int | None) -> dict[str, Any]:
    return run(RunConfig.of(tree), FixedContext(rank, world, *asked_at))


def job(world: int, run_config: RunConfig, stop_at: int | None = None, save_at: int | None = None) -> dict[str, Any]:
    """Run on `world` ranks; rank 0's result."""
    result: dict[str, Any] = run_ranks(_job, world, run_config.model_dump(mode="json"), stop_at, save_at)[0]
    return result


def losses(storage: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (storage / "run" / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["metrics"]["train/loss"] for line in lines if "train/loss" in line.get("metrics", {})}


def weights(storage: Path) -> dict[str, np.ndarray]:
    checkpoint = newest_checkpoint(str(storage / "run"))
    reader = checkpoint.reader()
    sizes = {name: int(np.prod(shape)) for name, shape in checkpoint.meta["parameters"].items()}
    return {
        f"{name} {role}": reader.read(name, role, 0, size).numpy()
        for name, size in sizes.items()
        for role in checkpoint.roles
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return packed(tmp_path_factory.mktemp("tiny") / "data")


def test_a_stopped_run_continues_to_the_same_bits(data: str, tmp_path: Path) -> None:
    """World 2, expert-parallel 2, dropout, router noise and modality dropout on."""
    layout: dict[str, Any] = {"parallel__workers": 2, "parallel__expert_parallel": 2, "model__modality_dropout": 0.3}
    layout |= {"model__time_dropout": 0.2}
    whole = job(2, config(data, tmp_path / "whole", **layout))
    broken = config(data, tmp_path / "broken", **layout)
    first = job(2, broken, stop_at=3)
    assert first["status"] == "stopped" and first["step"] == 3
    second = job(2, broken, stop_at=4)
    assert second["step"] == 7
    last = job(2, broken)
    assert last["status"] == "finished" and last["samples"] == whole["samples"] == 64
    assert last["metrics"] == whole["metrics"]
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert expected.keys() == got.keys()
    assert all(np.array_equal(expected[name], got[name]) for name in expected)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    # A finished run that is started again has nothing to do, and says the same.
    assert job(2, broken)["metrics"] == whole["metrics"]


def test_an_average_of_weights_is_evaluated_tested_and_read_and_training_goes_on_with_the_last_ones(
    data: str, tmp_path: Path
) -> None:
    """Stopped and continued to the same bits; moved to one rank; and what trains is what trains without an average."""
    layout: dict[str, Any] = {**STEADY, "parallel__workers": 2, "parallel__expert_parallel": 2}
    job(2, config(data, tmp_path / "plain", **layout))
    whole = job(2, config(data, tmp_path / "whole", **layout, optim__ema=0.9))
    for name in ("broken", "moved"):
        assert job(2, config(data, tmp_path / name, **layout, optim__ema=0.9), stop_at=5)["step"] == 5
    assert job(2, config(data, tmp_path / "broken", **layout, optim__ema=0.9))["metrics"] == whole["metrics"]
    moved = config(data, tmp_path / "moved", **STEADY, optim__ema=0.9)
    assert job(1, moved)["metrics"] == pytest.approx(whole["metrics"], abs=1e-3)
    plain, expected, got = (weights(tmp_path / name) for name in ("plain", "whole", "broken"))
    assert expected.keys() == got.keys() == weights(tmp_path / "moved").keys()
    assert all(np.array_equal(expected[name], got[name]) for name in expected)
    live = {name.removesuffix(" live"): value for name, value in got.items() if name.endswith(" live")}
    assert len(live) == len(got) / 4
    assert all(np.array_equal(value, plain[f"{name} master"]) for name, value in live.items())
    assert max(float(np.abs(value - got[f"{name} master"]).max()) for name, value in live.items()) > 1e-3
    # The part that was evaluated while training, again from the checkpoint, as anybody reads it.
    lines = [json.loads(line) for line in (tmp_path / "moved" / "run" / "metrics.jsonl").read_text().splitlines()]
    seen = [line for line in lines if "val/loss" in line.get("metrics", {})][-1]
    checkpoint = open_checkpoint(f"{moved.run_dir}/checkpoints/step-{seen['step']:010d}")
    again = job(1, evaluation_config(checkpoint, part="val"))
    assert again["metrics"]["val/loss"] == pytest.approx(seen["metrics"]["val/loss"], abs=1e-6)


@pytest.mark.long
def test_a_finished_run_goes_on_when_it_is_given_more_epochs(data: str, tmp_path: Path) -> None:
    steady: dict[str, Any] = {"optim__schedule": "constant"}
    whole = job(1, config(data, tmp_path / "whole", **steady, training__epochs=3))
    assert job(1, config(data, tmp_path / "more", **steady, training__epochs=2))["step"] == 8
    last = job(1, config(data, tmp_path / "more", **steady, training__epochs=3))
    assert (last["step"], last["metrics"]) == (12, whole["metrics"])
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "more")
    assert all(np.array_equal(expected[name], got[name]) for name in expected)
    assert losses(tmp_path / "more") == losses(tmp_path / "whole")


def test_a_checkpoint_is_written_when_a_rank_asks_for_one(data: str, tmp_path: Path) -> None:
    run_config = config(data, tmp_path, training__checkpoint={"every": 100, "keep_last": 9}, training__epochs=1)
    job(2, run_config, save_at=2)
    assert list_checkpoints(run_config.run_dir)[0].step == 2


@pytest.mark.parametrize(
    ("world", "degree", "stage"),
    [(1, 1, 2), (2, 1, 1), *(pytest.param(4, *rest, marks=pytest.mark.long) for rest in ((4, 1), (2, 2)))],
    ids=str,
)
def test_a_run_continues_at_another_world_size(data: str, tmp_path: Path, world: int, degree: int, stage: int) -> None:
    saved = {**STEADY, "parallel__workers": 2, "parallel__expert_parallel": 2}
    job(2, config(data, tmp_path / "whole", **saved))
    job(2, config(data, tmp_path / "moved", **saved), stop_at=5)
    moved = {**STEADY, "parallel__workers": world, "parallel__expert_parallel": degree, "parallel__zero_stage": stage}
    job(world, config(data, tmp_path / "moved", **moved))
    expected, got = losses(tmp_path / "whole"), losses(tmp_path / "moved")
    assert expected.keys() == got.keys() == set(range(1, 13))
    assert max(abs(expected[step] - got[step]) / expected[step] for step in expected) < 1e-5


def test_evaluate_repeats_the_test_metrics_and_hides_modalities(data: str, tmp_path: Path) -> None:
    result = job(1, config(data, tmp_path))
    url = str(tmp_path / "run")
    again = job(1, evaluation_config(open_checkpoint(result["checkpoint"])))
    assert again["metrics"] == result["metrics"] and again["samples"] == 8
    hidden = job(1, evaluation_config(open_checkpoint(url), drop=["lab", "scan"]))
    assert hidden["metrics"]["test/loss"] != result["metrics"]["test/loss"]
    elsewhere = job(1, evaluation_config(open_checkpoint(url), data_url=packed(tmp_path / "other", seed=5), part="val"))
    assert "val/loss" in elsewhere["metrics"]
    with pytest.raises(AssertionError, match="no modality 'nose'; the model knows lab, vital"):
        job(1, evaluation_config(open_checkpoint(url), drop=["nose"]))


def test_damaged_checkpoints_are_passed_over(data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_config = config(data, tmp_path, training__checkpoint={"every": 2, "keep_last": 3})
    job(1, run_config, stop_at=6)
    paths = committed_paths(run_config.run_dir)
    assert [path[-1] for path in paths] == ["6", "4", "2"]
    newest = next(Path(paths[0]).glob("*-00000-000.safetensors"))
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes(bytes(content))
    (Path(paths[1]) / "COMMIT").unlink()
    result = job(1, run_config, stop_at=1)
    assert result["step"] == 3, "step 6 is damaged, step 4 was never committed: continued from step 2"
    (Path(paths[0]) / "checkpoint.json").write_text("{}")
    with caplog.at_level("WARNING"):
        open_checkpoint(run_config.run_dir)
    assert "does not match the digest" in caplog.text
    with pytest.raises(CheckpointError, match="no committed checkpoint"):
        open_checkpoint(str(tmp_path))


def test_a_checkpoint_that_one_rank_finds_damaged_is_passed_over_by_all(data: str, tmp_path: Path) -> None:
    run_config = config(data, tmp_path, training__checkpoint={"every": 2, "keep_last": 3}, parallel__timeout_s=20.0)
    job(2, run_config, stop_at=6)
    of_rank_1 = next(Path(committed_paths(run_config.run_dir)[0]).glob("*-00001-000.safetensors"))
    content = bytearray(of_rank_1.read_bytes())
    content[-5] ^= 1
    of_rank_1.write_bytes(bytes(content))
    assert job(2, run_config, stop_at=1)["step"] == 5, "rank 0 can read its part of step 6, and rank 1 cannot"


def test_a_checkpoint_of_another_model_or_other_data_is_refused(data: str, tmp_path: Path) -> None:
    run_config = config(data, tmp_path)
    job(1, run_config, stop_at=2)
    other = config(packed(tmp_path / "other", seed=3), tmp_path)
    with pytest.raises(AssertionError, match="the data changed; give the run another name"):
        job(1, other)
    other.model.dim = 24
    with pytest.raises(AssertionError, match="the data changed; give the run another name"):
        job(1, other)  # said before anything is loaded, which this model could not be
    wider = config(data, tmp_path, model__dim=24)
    with pytest.raises(AssertionError, match=r"does not fit this model: parameter .* use the recipe"):
        job(1, wider)


class TwoSplits(Tiny):
    """Tiny, with a second split whose parts are others."""

    def read(self, unit: Any, notes: Counter[str]) -> Iterator[Record]:
        for record in super().read(unit, notes):
            part = {"train": "test", "val": "train", "test": "val"}[record.splits["default"]]
            yield replace(record, splits={**record.splits, "other": part})


def test_a_run_does_not_go_on_with_another_split(tmp_path: Path) -> None:
    """It would be tested on what it has learned."""
    pack(TwoSplits(TwoSplits.Options()), str(tmp_path / "two"))
    job(1, config(str(tmp_path / "two"), tmp_path), stop_at=2)
    with pytest.raises(
        AssertionError, match="was trained on split default and is to go on with other, which would test"
    ):
        job(1, config(str(tmp_path / "two"), tmp_path, data__split="other"))
    assert job(1, config(str(tmp_path / "two"), tmp_path), stop_at=1)["step"] == 3


def test_a_run_that_goes_on_has_no_result_until_it_ends_again(data: str, tmp_path: Path) -> None:
    run_config = config(data, tmp_path, training__epochs=1)
    job(1, run_config)
    before = stored_result(run_config.run_dir)
    assert before is not None and before["status"] == "finished"
    longer = config(data, tmp_path, training__epochs=40, training__max_steps=before["step"] + 2, optim__lr=float("inf"))
    with pytest.raises(AssertionError):
        job(1, longer)
    assert stored_result(run_config.run_dir) is None
    job(1, run_config)
    assert stored_result(run_config.run_dir) is not None


def test_what_is_kept(data: str, tmp_path: Path) -> None:
    """The last two and the best; leftovers of a killed attempt go."""
    run_config = config(
        data,
        tmp_path,
        training__eval_every=1,
        training__epochs=3,
        training__checkpoint={"keep_last": 2, "keep_best": 1},
    )
    orphan = tmp_path / "run" / "checkpoints" / "step-0000000001"
    orphan.mkdir(parents=True)
    (orphan / "rank-00000.safetensors").write_bytes(b"half")
    result = job(1, run_config)
    kept = {int(path.rsplit("-", 1)[1]) for path in committed_paths(run_config.run_dir)}
    best = int(result["checkpoint"].rsplit("-", 1)[1])
    assert kept == {best, 11, 12}
    assert {int(path.name.rsplit("-", 1)[1]) for path in orphan.parent.iterdir()} == kept


def test_divergence_is_reported_with_the_records(data: str, tmp_path: Path) -> None:
    diverging = {"optim__lr": 1e30, "optim__warmup": 0, "optim__clip": None}
    with pytest.raises(AssertionError, match=r"gradient of step \d+ is not finite \(rank 0: r\d{4}"):
        job(1, config(data, tmp_path, **diverging))
    result = job(1, config(data, tmp_path / "skip", **diverging, training__on_nonfinite="skip"), stop_at=4)
    assert result["step"] == 4


def test_early_stopping_and_accumulation(data: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"training__epochs": 50, "optim__lr": 1e-9}
    stopping = {"metric": "val/loss", "patience": 2}
    result = job(1, config(data, tmp_path, **settings, training__early_stopping=stopping))
    assert result["status"] == "finished" and result["step"] < 200
    longer = job(1, config(data, tmp_path, **settings, training__early_stopping={**stopping, "patience": 4}))
    assert result["step"] < longer["step"] < 200
    with pytest.raises(AssertionError, match=r"early_stopping.metric = 'val/nothing' is not computed; there are val/"):
        job(1, config(data, tmp_path / "b", training__early_stopping={"metric": "val/nothing"}))


def test_accumulation_changes_nothing_but_memory(data: str, tmp_path: Path) -> None:
    """Without balance losses (which are means over micro-batches) two micro-batches give the same losses as one."""
    plain = {**STEADY, "model__moe__balance": 0.0, "model__moe__entropy": 0.0, "model__moe__z": 0.0}
    job(1, config(data, tmp_path / "one", **plain))
    job(
        2,
        config(data, tmp_path / "two", **plain, training__accumulation=2, parallel__workers=2, parallel__zero_stage=2),
    )
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert max(abs(one[step] - two[step]) / one[step] for step in one) < 1e-5


def test_an_exported_model_answers_like_the_trained_one(data: str, tmp_path: Path) -> None:
    result = job(2, config(data, tmp_path, parallel__workers=2, parallel__expert_parallel=2))
    report = export_model(result["checkpoint"], str(tmp_path / "export"))
    model = load_model(str(tmp_path / "export"))
    assert report["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    manifest = open_manifest(data)
    step = next(StepLoader(manifest, config(data, tmp_path).data, "test", 8, 0, 1, shuffle=False).steps(0))
    with torch.no_grad():
        batch = step.micro_batches[0]
        logits = model(batch).logits["died"]
    values = task_metrics(manifest.schema.task("died"), logits, batch.targets["died"])
    assert values["brier"] == pytest.approx(result["metrics"]["test/died/brier"], abs=1e-6)
    with pytest.raises(CheckpointError, match="holds no exported model"):
        load_model(str(tmp_path))
    # Somebody made it smaller: it is loaded in float32, with the values that are left.
    file = tmp_path / "export" / "model.safetensors"
    halved = {name: value.bfloat16() for name, value in load_file(file).items()}
    save_file(halved, file)
    again = load_model(str(tmp_path / "export"))
    assert all(torch.equal(value, halved[name].float()) for name, value in again.named_parameters())
    assert {value.dtype for value in again.parameters()} == {torch.float32}
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged: "):
        load_model(str(tmp_path / "export"))


def test_listing_and_verifying_checkpoints(data: str, tmp_path: Path) -> None:
    run_config = config(data, tmp_path, training__checkpoint={"every": 2, "keep_last": 3})
    job(1, run_config, stop_at=4)
    assert [(entry.step, entry.problem) for entry in list_checkpoints(run_config.run_dir, verify=True)] == [
        (2, None),
        (4, None),
    ]
    first, second = (Path(path) for path in reversed(committed_paths(run_config.run_dir)))
    with next(first.glob("*-00000-000.safetensors")).open("r+b") as file:
        file.truncate(5000)
    (second / "COMMIT").unlink()
    assert all(entry.problem is None for entry in list_checkpoints(str(first)))
    damaged, pending = list_checkpoints(run_config.run_dir, verify=True)
    assert "do not match their digest" in str(damaged.problem) and "not committed" in str(pending.problem)


def test_loader_processes_and_prefetch_change_nothing(data: str, tmp_path: Path) -> None:
    """Stopped with steps read ahead in a worker process; continued without one."""
    whole = job(1, config(data, tmp_path / "whole"))
    job(1, config(data, tmp_path / "ahead", data__workers=1, data__prefetch=3), stop_at=2)
    last = job(1, config(data, tmp_path / "ahead"))
    assert last["metrics"] == whole["metrics"]
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "ahead")
    assert all(np.array_equal(expected[name], got[name]) for name in expected)


def test_damaged_data_stops_the_run_or_is_skipped_and_counted(tmp_path: Path) -> None:
    data = packed(tmp_path / "data")
    index = read_index(open_manifest(data), 0)
    row = index.keys.index("r0006")
    shard = next((tmp_path / "data").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[int(index.start_n[row] + index.size_n[row]) - 2] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(AssertionError, match=rf"shard {shard.name}, chunk 1, bytes \d+..\d+: .*CRC-32"):
        job(2, config(data, tmp_path / "stop", parallel__workers=2))
    skipping: dict[str, Any] = {"data__on_error": "skip", "data__retries": 0, "parallel__workers": 2}
    run_config = config(data, tmp_path / "skip", data__max_skipped=4, **skipping)
    assert job(2, run_config)["status"] == "finished"
    checkpoint = newest_checkpoint(run_config.run_dir)
    skipped = checkpoint.meta["progress"]["skipped"]
    assert skipped == {"checksum": 2}, "one damaged record, in two epochs"
    with pytest.raises(AssertionError, match=r"2 checksum.*data.max_skipped is 1"):
        job(2, config(data, tmp_path / "limit", data__max_skipped=1, **skipping))


@pytest.mark.parametrize("stop_at", [4, 8], ids=["end of an epoch", "end of the run"])
def test_a_run_stopped_before_an_evaluation_makes_up_for_it(data: str, tmp_path: Path, stop_at: int) -> None:
    whole = job(1, config(data, tmp_path / "whole"))
    broken = config(data, tmp_path / "broken")
    assert job(1, broken, stop_at=stop_at)["step"] == stop_at
    last = job(1, broken)
    assert (last["metrics"], last["step"]) == (whole["metrics"], whole["step"])
    assert last["checkpoint"].rsplit("-", 1)[1] == whole["checkpoint"].rsplit("-", 1)[1]
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(np.array_equal(expected[name], got[name]) for name in expected)


def test_a_run_in_an_object_store_is_the_run_on_a_disk(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped, continued, tested by its best checkpoint, evaluated by the address that it gives."""
    layout: dict[str, Any] = {"training__epochs": 2, "model__modality_dropout": 0.3}
    disk = run(config(data, tmp_path / "disk", **layout), FixedContext(0, 1))
    with local_s3(monkeypatch) as bucket:
        far = config(data, tmp_path, **{**layout, "training__storage": f"{bucket}/runs"})
        stopped = run(far, FixedContext(0, 1, stop_at=3))
        assert stopped["status"] == "stopped" and stopped["checkpoint"].startswith(f"{bucket}/runs/run/checkpoints/")
        assert open_checkpoint(stopped["checkpoint"]).step == stopped["step"] == 3
        finished = run(far, FixedContext(0, 1))
        assert finished["metrics"] == disk["metrics"] and finished["checkpoint"].startswith(f"{bucket}/runs/run/")
        again = run(evaluation_config(open_checkpoint(finished["checkpoint"])), FixedContext(0, 1))
        assert again["checkpoint"] == finished["checkpoint"]
        assert again["metrics"] == pytest.approx(finished["metrics"], rel=1e-6)
        model = export_model(finished["checkpoint"], f"{bucket}/model")
        assert model["checkpoint"] == finished["checkpoint"] and model["parameters"] > 0
    assert not (tmp_path / "run").exists() and not Path("data/runs").exists()
