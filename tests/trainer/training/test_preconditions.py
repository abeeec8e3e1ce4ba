"""What a run cannot learn, choose by or measure is said before its first step, and has no figure later."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards import DatasetSchema, ModalitySpec, Record, TaskSpec, open_manifest, pack
from data_shards.inspection.labels import part_labels
from data_shards.sources.base import Source, SourceOptions
from tests.ranks import run_ranks
from trainer.checkpoints.evaluation_recipe import evaluation_config
from trainer.checkpoints.find import open_checkpoint
from trainer.config.run_config import RunConfig
from trainer.jobs.job import run
from trainer.worker.context import SingleContext

NAN = float("nan")
SCHEMA = DatasetSchema(
    "labels",
    (ModalitySpec("age", "vector", shape=(2,)),),
    (TaskSpec("y", "binary"), TaskSpec("z", "multiclass", classes=("a", "b", "c"))),
)
# part -> (y, z) of its records, in storage order.
WHOLE = {
    "train": [(i % 2, i % 3) for i in range(16)],
    "val": [(i % 2, i % 3) for i in range(8)],
    "test": [(i % 2, i % 3) for i in range(8)],
}


class Labels(Source):
    """Records whose labels are given."""

    schema = SCHEMA

    def __init__(self, parts: dict[str, list[tuple[float, float]]]) -> None:
        super().__init__(SourceOptions())
        self.rows = [(part, number, *row) for part, rows in parts.items() for number, row in enumerate(rows)]

    def units(self) -> Sequence[Any]:
        return range(len(self.rows))

    def read(self, unit: Any, notes: Counter[str]) -> Iterator[Record]:
        part, number, y, z = self.rows[unit]
        age = np.random.default_rng(unit).normal(size=2).astype(np.float32)
        yield Record(f"{part}{number}", {"age": age}, {"y": y, "z": z}, {"default": part})


def packed(folder: Path, parts: dict[str, list[tuple[float, float]]], shard_bytes: int = 1 << 20) -> str:
    pack(Labels(parts), str(folder), chunk_records=4, shard_bytes=shard_bytes)
    return str(folder)


def recipe(data: str, storage: Path, **changes: Any) -> dict[str, Any]:
    moe = {"experts": 2, "top_k": 1, "hidden": 8}
    tree: dict[str, Any] = {
        "name": "run",
        "data": {"url": data},
        "model": {"dim": 8, "layers": 1, "heads": 1, "moe": moe},
        "training": {"epochs": 1, "batch_size": 8, "log_every": 1, "storage": str(storage)},
        "tracking": {"mlflow": False},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        tree[section] = {**tree.get(section, {}), name: value}
    return RunConfig.model_validate(tree).model_dump(mode="json")


class Rank(SingleContext):
    def __init__(self, rank: int, world: int) -> None:
        super().__init__("cpu")
        self.rank, self.world, self.local_rank = rank, world, rank


def _outcomes(rank: int, world: int, trees: list[dict[str, Any]]) -> list[Any]:
    """For each recipe its result, or the text of its error."""
    found: list[Any] = []
    for tree in trees:
        try:
            found.append(run(RunConfig.of(tree), Rank(rank, world)))
        except (ValueError, RuntimeError) as error:
            found.append(str(error))
    return found


def outcomes(world: int, *trees: dict[str, Any]) -> list[Any]:
    """The same on every rank."""
    first, *others = run_ranks(_outcomes, world, list(trees))
    short = [
        [said if isinstance(said, str) else (said["status"], said["samples"]) for said in own]
        for own in (first, *others)
    ]
    assert all(own == short[0] for own in short)
    return first  # type: ignore[no-any-return]


def metrics(storage: Path, name: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (storage / "run" / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["metrics"][name] for line in lines if name in line.get("metrics", {})}


def without(part: str, task: int) -> dict[str, list[tuple[float, float]]]:
    """The whole data, and a part in which one of the two tasks is not labelled."""
    blank = [tuple(NAN if place == task else value for place, value in enumerate(row)) for row in WHOLE[part]]
    return {**WHOLE, part: blank}  # type: ignore[dict-item]


def blank(part: str) -> dict[str, list[tuple[float, float]]]:
    return {**WHOLE, part: [(NAN, NAN)] * 8}


@pytest.mark.parametrize("world", [1, 2])
def test_what_cannot_be_learned_or_chosen_is_refused_on_every_rank(tmp_path: Path, world: int) -> None:
    whole = packed(tmp_path / "whole", WHOLE)
    no_train, no_val = packed(tmp_path / "no_train", blank("train")), packed(tmp_path / "no_val", blank("val"))
    one_class = packed(tmp_path / "one", {**WHOLE, "val": [(0, i % 2) for i in range(8)]})
    no_y, no_val_y = packed(tmp_path / "no_y", without("train", 0)), packed(tmp_path / "no_val_y", without("val", 0))
    only_train = packed(tmp_path / "only", {"train": WHOLE["train"]})
    layout = {"parallel__workers": world}
    patient = {"metric": "val/loss", "patience": 1}
    area = {"metric": "val/y/auroc", "mode": "max"}
    cases = [
        (recipe(no_train, tmp_path, **layout), "no record of part train of", "has a label of y, z, so there is noth"),
        (recipe(no_val, tmp_path, **layout), "'val/loss' is not computed; there are none (no", "label of y, z: lab"),
        (recipe(no_val, tmp_path, training__early_stopping=patient, **layout), "'val/loss' is not computed", "pack"),
        (recipe(one_class, tmp_path, training__early_stopping=area, **layout), "'val/y/auroc' is not computed", "ece"),
        (
            recipe(whole, tmp_path, training__early_stopping={"metric": "val/records"}, **layout),
            "training.early_stopping.metric=val/records counts records and cannot choose",
            "",
        ),
        (
            recipe(whole, tmp_path, training__early_stopping={"metric": "val/y/auroc", "mode": "min"}, **layout),
            "training.early_stopping.mode=min would choose the worst model by val/y/auroc, of which more is better",
            "set training.early_stopping.mode=max",
        ),
        (
            recipe(whole, tmp_path, training__checkpoint={"keep_best": 0}, **layout),
            "training.checkpoint.keep_best=0 would remove the best checkpoint by val/loss",
            "set it to 1 or more",
        ),
        (
            recipe(whole, tmp_path, training__early_stopping={"metric": "val/auroc"}, **layout),
            "'val/auroc' is not computed; there are val/loss, val/y/accuracy, val/y/auprc, val/y/auroc",
            "val/z/f1",
        ),
        (recipe(no_y, tmp_path, training__tasks=["y"], **layout), "label of y, so there is nothing to learn", ""),
        (recipe(no_y, tmp_path, training__tasks=["y", "z"], **layout), "has a label of y", "leave it out of training"),
        (recipe(only_train, tmp_path, training__early_stopping=patient, **layout), "patience=1 needs a part val", ""),
        (recipe(whole, tmp_path, training__task_weights={"x": 2.0}, **layout), "training.task_weights names x", "y, z"),
        (
            recipe(whole, tmp_path, training__task_weights={"y": 0, "z": 0}, **layout),
            "training.task_weights is 0 for y, z, and part train of",
            "so there is nothing to learn: give one of them a weight",
        ),
        (
            recipe(no_y, tmp_path, training__task_weights={"z": 0}, **layout),
            "training.task_weights is 0 for z, and part train of",
            "so there is nothing to learn",
        ),
        (
            recipe(no_val_y, tmp_path, training__task_weights={"z": 0}, **layout),
            "'val/loss' is not computed; there are val/z/accuracy",
            "has a label of y: label it, or pack without a part val",
        ),
    ]
    found = outcomes(world, *(tree for tree, _, _ in cases))
    for said, (_, sentence, rest) in zip(found, cases, strict=True):
        assert isinstance(said, str) and sentence in said and rest in said and "\n" not in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists(), "nothing was trained or written"


def test_what_is_not_labelled_has_no_figure(tmp_path: Path) -> None:
    data = {
        "test": packed(tmp_path / "a", blank("test")),
        "train_y": packed(tmp_path / "b", without("train", 0)),
        "val_z": packed(tmp_path / "c", without("val", 1)),
        "one": packed(tmp_path / "d", {**WHOLE, "test": [(0, 0)] * 8}),
        "empty": packed(tmp_path / "e", {"train": WHOLE["train"]}),
    }
    found = dict(zip(data, outcomes(1, *(recipe(url, tmp_path / name) for name, url in data.items())), strict=True))
    assert found["test"]["metrics"] == {"test/records": 8.0} and found["test"]["status"] == "finished"
    assert (tmp_path / "test/run/predictions/test.parquet").exists() or list((tmp_path / "test/run").rglob("*.parquet"))
    assert metrics(tmp_path / "train_y", "train/y") == {} and len(metrics(tmp_path / "train_y", "train/z")) == 2
    # Of y alone: a loss of nothing is not added to it.
    one, whole = metrics(tmp_path / "val_z", "val/loss"), metrics(tmp_path / "val_z", "val/y/brier")
    assert len(one) == len(whole) == 1 and metrics(tmp_path / "val_z", "val/z/brier") == {}
    assert {name for name in found["one"]["metrics"] if "/y/" in name} == {
        f"test/y/{name}" for name in ("accuracy", "brier", "ece")
    }
    assert found["empty"]["metrics"] == {} and metrics(tmp_path / "empty", "val/loss") == {}


def test_tasks_of_weight_0_alone_give_no_loss(tmp_path: Path) -> None:
    """Of y one record of part train and none of part test is labelled; z, which is labelled, has weight 0."""
    rows = [(1.0, 2.0), *[(NAN, 1.0)] * 7]
    data = packed(tmp_path / "data", {**without("test", 0), "train": rows})
    small = {"training__batch_size": 1, "training__eval_batch_size": 8}
    weighted = recipe(data, tmp_path / "weighted", training__task_weights={"z": 0}, **small)
    whole = recipe(data, tmp_path / "whole", **small)
    found, usual = outcomes(1, weighted, whole)
    assert "test/loss" not in found["metrics"] and "test/loss" in usual["metrics"]
    assert found["metrics"]["test/records"] == 8 and "test/z/accuracy" in found["metrics"]
    own = {name: metrics(tmp_path / "weighted", f"train/{name}") for name in ("y", "z", "loss", "balance")}
    assert len(own["z"]) == 8 and len(own["y"]) == 1 and own["loss"].keys() == own["y"].keys()
    (step,) = own["loss"]
    assert own["loss"][step] == pytest.approx(own["y"][step] + own["balance"][step], rel=1e-5)
    assert len(metrics(tmp_path / "whole", "train/loss")) == 8


def test_a_step_without_a_label_counts_in_no_mean(tmp_path: Path) -> None:
    """Two of eight records are labelled; steps of one record, in the order of an epoch."""
    rows = [(1.0, NAN), *[(NAN, NAN)] * 3, (NAN, 2.0), *[(NAN, NAN)] * 3]
    data = packed(tmp_path / "data", {**WHOLE, "train": rows})
    balance = {"training__batch_size": 1, "training__eval_batch_size": 8}
    single = recipe(data, tmp_path / "single", **balance)
    together = recipe(data, tmp_path / "together", training__log_every=8, **balance)
    two = recipe(data, tmp_path / "two", **balance)
    first, second = outcomes(1, single, together)
    assert first["samples"] == second["samples"] == 8 and first["metrics"] == second["metrics"]
    own = {name: metrics(tmp_path / "single", f"train/{name}") for name in ("y", "z", "loss", "balance", "grad_norm")}
    assert len(own["y"]) == len(own["z"]) == 1 and own["y"].keys() | own["z"].keys() == own["loss"].keys()
    assert len(own["balance"]) == len(own["grad_norm"]) == 8, "the routers are balanced by all of them"
    (y,), (z,) = own["y"].values(), own["z"].values()
    assert 0.1 < y < 3 and 0.1 < z < 3
    # The first step is logged alone; so the other line is of the other seven.
    late = {name: metrics(tmp_path / "together", f"train/{name}") for name in ("y", "z", "loss", "balance")}
    values = {name: [value for step, value in own[name].items() if step > 1] for name in ("y", "z", "balance")}
    for name, seen in values.items():
        assert late[name].get(8) == (pytest.approx(sum(seen) / len(seen)) if seen else None)
    means = [sum(seen) / len(seen) for seen in values.values() if seen]
    assert late["loss"][8] == pytest.approx(sum(means))
    assert outcomes(2, {**two, "parallel": {**two["parallel"], "workers": 2}})[0]["samples"] == 8
    split = metrics(tmp_path / "two", "train/loss")
    assert split == pytest.approx(own["loss"], rel=1e-4), "a rank without records has no part in it"


def damage(folder: str, keep: int) -> None:
    """Cut off every shard after so many of its chunks."""
    for shard in open_manifest(folder).shards:
        path = Path(folder) / shard.name
        end = shard.chunks[keep].offset if keep < len(shard.chunks) else shard.bytes
        path.write_bytes(path.read_bytes()[: max(end, 512)])


@pytest.mark.parametrize("world", [1, 2])
def test_samples_are_those_that_were_read_and_nothing_read_is_an_error(tmp_path: Path, world: int) -> None:
    all_gone, half = packed(tmp_path / "gone", WHOLE), packed(tmp_path / "half", WHOLE)
    no_test = packed(tmp_path / "no_test", WHOLE)
    damage(all_gone, 0)
    chunks = open_manifest(half).shards[0].chunks
    parts = {name: open_manifest(half).column("default", name) for name in WHOLE}
    train = [chunk.parts[parts["train"]] for chunk in chunks]
    assert len(open_manifest(half).shards) == 1 and sum(train) == 16 and len(chunks) == 8
    # Train, val and test lie one after the other: 3 of 4 chunks of train, or all but the last of test.
    damaged = bytearray((Path(half) / open_manifest(half).shards[0].name).read_bytes())
    for number in (1, 7):
        damaged[chunks[number].offset + 512 : chunks[number].offset + chunks[number].length] = bytes(
            chunks[number].length - 512
        )
    (Path(half) / open_manifest(half).shards[0].name).write_bytes(damaged)
    damage(no_test, 6)
    skip = {"parallel__workers": world}
    trees = [
        {**recipe(url, tmp_path / name, **skip), "data": {"url": url, "on_error": "skip", "max_skipped": 100}}
        for name, url in (("g", all_gone), ("h", half), ("n", no_test))
    ]
    gone, read, untested = outcomes(world, *trees)
    assert gone == "data: no record of step 1 could be read: 8 records skipped (8 truncated)"
    assert read["samples"] == 12 and read["metrics"]["test/records"] == 4 and read["metrics"]["test/skipped"] == 4
    assert metrics(tmp_path / "h", "train/samples_seen")[2] == 12 and metrics(tmp_path / "h", "data/skipped")[2] == 4
    assert untested == "data: no record of part test could be read: 8 records skipped (8 truncated)"


def test_evaluation_of_what_is_not_labelled_is_refused(tmp_path: Path) -> None:
    whole, data = packed(tmp_path / "whole", WHOLE), packed(tmp_path / "data", blank("test"))
    no_val = packed(tmp_path / "no_val", blank("val"))
    (result,) = outcomes(1, recipe(whole, tmp_path))
    asked = evaluation_config(open_checkpoint(result["checkpoint"]), data).model_dump(mode="json")
    fitted = evaluation_config(open_checkpoint(result["checkpoint"]), no_val).model_dump(mode="json")
    fitted["evaluation"]["temperature"] = True
    said, unfitted = outcomes(1, asked, fitted)
    assert f"no record of part test of {data} has a label of y, z, so there is nothing to measure" in said
    assert f"no record of part val of {no_val} has a label of y, z, so no temperature can be fitted" in unfitted


def test_indexes_are_read_until_enough_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_shards.inspection import labels

    rare = [(0, NAN)] * 30 + [(1, 2)] * 2
    data = packed(tmp_path / "data", {"train": WHOLE["train"], "val": rare}, shard_bytes=4096)
    manifest, read = open_manifest(data), []
    assert len(manifest.shards) > 4
    original = labels.read_index
    monkeypatch.setattr(labels, "read_index", lambda m, number: read.append(number) or original(m, number))
    seen = part_labels(manifest, "default", "val", ["y"], lambda found: bool(found.labelled["y"]))
    first = len(read)
    assert seen.values["y"] == ({0.0},) and seen.records == 32
    seen = part_labels(manifest, "default", "val", ["y", "z"], lambda found: bool(found.labelled["z"]))
    assert seen.values == {"y": ({0.0, 1.0},), "z": ({2.0},)} and seen.labelled == {"y": 32, "z": 2}
    assert first == 1 and len(read) > 3
    assert part_labels(manifest, "default", "nothing", ["y"], lambda found: True).records == 0


def test_what_cannot_be_hidden_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = packed(tmp_path / "data", WHOLE)
    tree = recipe(data, tmp_path, model__time_dropout=0.3, model__modality_dropout=0.2, training__max_steps=1)
    with caplog.at_level("WARNING"):
        run(RunConfig.model_validate(tree), SingleContext())
    assert "model.time_dropout=0.3 hides nothing: no modality of these data has times" in caplog.text
    assert "model.modality_dropout=0.2 hides nothing: age is the only modality" in caplog.text
