"""Whole fine-tuning runs: stopped and continued to the same bits, on towers and on a FuseMoE host."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from benchmarks.finished_run import newest_checkpoint
from data_shards import Manifest, Record, create_source, open_manifest, pack
from data_shards.shards.reader import read_index
from launch.plan.replicated import plan_replicated
from tests.trainer.jobs.test_train import job, losses, weights
from tests.trainer.tiny import Reordered, TinyOptions, config, packed, predictor_of
from tests.trainer.towers import batch, model, section
from tests.trainer.vqa import packed_vqa, recipe
from trainer.checkpoints.evaluation_recipe import evaluation_config
from trainer.checkpoints.find import open_checkpoint
from trainer.config.run_config import RunConfig
from trainer.inference.request import Request
from trainer.metrics.prediction_table import read_predictions
from trainer.models.job_type import job_type
from trainer.models.mope.host.backbone import load_host
from trainer.worker.devices import find_device


@pytest.fixture(scope="module")
def vqa(tmp_path_factory: pytest.TempPathFactory) -> str:
    return packed_vqa(tmp_path_factory.mktemp("vqa"))


@pytest.fixture(scope="module")
def icu(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A data set, and a run that was trained on it for another task."""
    folder = tmp_path_factory.mktemp("icu")
    data = packed(folder / "data")
    job(1, config(data, folder, training__tasks=["kind"], training__epochs=1))
    return data, str(folder / "run")


def on_host(icu: tuple[str, str], storage: Path, **changes: object) -> RunConfig:
    data, host = icu
    mope = {"host": host, "gate": True, "k": 3, "static_length": 1, "dynamic_length": 2, "context_dim": 8}
    tree = config(data, storage).model_dump(mode="json")
    tree |= {"job": "mope", "mope": {**mope, "mapper_hidden": 8, **changes}}
    tree["training"] |= {"tasks": ["died"], "epochs": 3}
    return RunConfig.model_validate(tree)


def same(storage: Path, one: str, other: str) -> None:
    expected, got = (weights(storage / name) for name in (one, other))
    assert expected.keys() == got.keys()
    assert all(np.array_equal(expected[name], got[name]) for name in expected)
    buffers = []
    for name in (one, other):
        checkpoint = newest_checkpoint(str(storage / name / "run"))
        buffers.append(checkpoint.meta["buffers"])
    assert buffers[0] == buffers[1] and any("mean_LK" in name for name in buffers[0])


def test_a_stopped_run_on_towers_ends_with_the_same_bits(vqa: str, tmp_path: Path) -> None:
    world = 2
    settings = {"parallel__workers": world, "mope__source_length": 2}
    whole = job(world, recipe(vqa, tmp_path / "whole", **settings))
    job(world, recipe(vqa, tmp_path / "broken", **settings), stop_at=3)
    last = job(world, recipe(vqa, tmp_path / "broken", **settings))
    assert last["metrics"] == whole["metrics"] and last["status"] == "finished"
    same(tmp_path, "whole", "broken")
    stored = weights(tmp_path / "whole")
    assert stored and not any(name.startswith("towers.") for name in stored), "the backbone is not in the checkpoint"


def test_two_ranks_train_what_one_trains(vqa: str, tmp_path: Path) -> None:
    """Importance is a function of the whole batch; without dropout and noise a step does not depend on the ranks."""
    steady = {"mope__dropout": 0.0, "mope__noise": 0.0, "mope__importance": {"weight": 1.0, "cut": 0.0}}
    job(1, recipe(vqa, tmp_path / "one", **steady))
    job(2, recipe(vqa, tmp_path / "two", **steady, parallel__workers=2, parallel__zero_stage=2))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert max(abs(one[step] - two[step]) / one[step] for step in one) < 1e-5


@pytest.mark.long
def test_a_stopped_run_on_a_host_ends_with_the_same_bits(icu: tuple[str, str], tmp_path: Path) -> None:
    world, degree = 2, 2

    def run(name: str, stop_at: int | None = None) -> dict[str, object]:
        whole = on_host(icu, tmp_path / name)
        whole.parallel.workers, whole.parallel.expert_parallel = world, degree
        return job(world, whole, stop_at=stop_at)

    expected = run("whole")
    run("broken", stop_at=4)
    assert run("broken")["metrics"] == expected["metrics"]
    same(tmp_path, "whole", "broken")
    assert not any(name.startswith("backbone.") for name in weights(tmp_path / "whole"))
    again = job(1, evaluation_config(open_checkpoint(str(expected["checkpoint"]))))
    metrics = expected["metrics"]
    assert isinstance(metrics, dict) and again["metrics"] == pytest.approx(metrics, rel=1e-5)


def predicted(run_dir: str, result: dict[str, object], **changes: Any) -> Any:
    """The test part by its adapter, after a look that it says what the run said."""
    adapter = open_checkpoint(str(result["adapter"]))
    assert adapter.run_dir == run_dir, "what is kept of a run by its adapter lies in the run's own folder"
    recipe = evaluation_config(adapter)
    predictor = predictor_of(Request(recipe, "test", **changes))
    (table,) = [predictor(stretch)[0] for stretch in predictor.stretches()]
    tasks, logged = read_predictions(Path(run_dir) / "predictions" / "test.parquet")
    assert table["record"].to_pylist() == logged.index_B.tolist()
    got = np.array(table[f"{tasks[0].name}.logits"].to_pylist(), np.float32).reshape(len(table), -1)
    np.testing.assert_allclose(got, logged.logits[tasks[0].name], rtol=1e-4, atol=1e-5)
    return table


def test_an_adapter_on_a_host_predicts_and_says_why(icu: tuple[str, str], tmp_path: Path) -> None:
    """A random router is drawn once and frozen: it is in no file, and must be the same one again."""
    recipe = on_host(icu, tmp_path, router="random")
    recipe.training.max_steps = 4
    table = predicted(recipe.run_dir, job(1, recipe), explain=True)
    pq.write_table(table, tmp_path / "explained.parquet")
    rows = pq.read_table(tmp_path / "explained.parquet").to_pylist()
    assert rows == table.to_pylist(), "any Parquet tool can read what was written"
    present = [{name for name, share in row["died.modality_share"].items() if share is not None} for row in rows]
    assert any(len(names) < len(rows[0]["died.modality_share"]) for names in present), "nothing is absent in this test"
    for row, names in zip(rows, present, strict=True):
        prompted = {site.removeprefix("block.0.") for site, weights in row["prompt_share"].items() if weights}
        assert prompted >= names and not {f"block.1.{name}" for name in names} - set(row["prompt_share"])
        for shares in filter(None, row["prompt_share"].values()):
            assert len(shares) == 3 and sum(shares) == pytest.approx(1, abs=1e-5)
        assert np.sum(row["expert_share"], 1) == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="was trained on a backbone with digest"):
        moved = evaluation_config(open_checkpoint(recipe.run_dir))
        job(1, config(icu[0], tmp_path / "other", training__max_steps=1))
        assert moved.mope is not None
        moved.mope.host = str(tmp_path / "other" / "run")
        predictor_of(Request(moved))


def test_an_adapter_on_towers_predicts_and_says_why(vqa: str, tmp_path: Path) -> None:
    settings = {"training__max_steps": 2, "mope__missing": "learned"}
    learned = recipe(vqa, tmp_path / "learned", **settings)
    row = predicted(learned.run_dir, job(1, learned), explain=True).to_pylist()[0]
    (shares,) = [value for name, value in row.items() if name.endswith(".modality_share")]
    assert set(shares) == {"image", "question"} and sum(shares.values()) == pytest.approx(1)
    assert all(sum(weights) == pytest.approx(1, abs=1e-5) for weights in row["prompt_share"].values())
    plain = recipe(vqa, tmp_path / "plain", training__max_steps=2)
    result = job(1, plain)
    predicted(plain.run_dir, result)
    with pytest.raises(ValueError, match=r"fine-tune it with mope.missing=learned, or predict without --explain"):
        predicted(plain.run_dir, result, explain=True)


@pytest.mark.long
def test_expert_parallel_hosts_give_the_same_losses(icu: tuple[str, str], tmp_path: Path) -> None:
    steady = on_host(icu, tmp_path / "one", dropout=0.0, noise=0.0)
    steady.model.modality_dropout = 0.0
    job(1, steady)
    spread = steady.model_copy(deep=True)
    spread.training.storage = str(tmp_path / "two")
    spread.parallel.workers, spread.parallel.expert_parallel = 2, 2
    job(2, spread)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert max(abs(one[step] - two[step]) / one[step] for step in one) < 1e-4


def test_a_tower_that_was_trained_here_is_a_tower(vqa: str, tmp_path: Path) -> None:
    tree = recipe(vqa, tmp_path, "picture").model_dump(mode="json")
    tree |= {"job": "tower", "mope": {"image": tree["mope"]["image"]}}
    tree["training"]["tasks"] = ["colour"]
    trained = job(1, RunConfig.model_validate(tree))
    image = {"source": str(tmp_path / "picture")}
    tuned = job(1, recipe(vqa, tmp_path, "tuned", mope__image=image))
    assert "test/accuracy" in tuned["metrics"]
    again = job(1, evaluation_config(open_checkpoint(tuned["checkpoint"])))
    assert again["metrics"] == tuned["metrics"]
    # The same name with other weights is another backbone.
    (tmp_path / "picture").rename(tmp_path / "old")
    tree["training"]["seed"] = 1
    assert job(1, RunConfig.model_validate(tree))["metrics"] != trained["metrics"]
    with pytest.raises(AssertionError, match=r"was trained on a backbone with digest \w{12}, and the one"):
        job(1, evaluation_config(open_checkpoint(tuned["checkpoint"])))
    with pytest.raises(AssertionError, match=r"trained job=mope and has no image tower; train one with job: tower"):
        job(1, recipe(vqa, tmp_path, "wrong", mope__image={"source": str(tmp_path / "tuned")}))


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.long
def test_baselines_run_as_the_same_job(vqa: str, tmp_path: Path, method: str) -> None:
    result = job(1, recipe(vqa, tmp_path, mope__method=method, training__epochs=1))
    assert result["status"] == "finished" and "test/accuracy" in result["metrics"]
    again = job(1, evaluation_config(open_checkpoint(result["checkpoint"])))
    assert again["metrics"] == result["metrics"]


def test_data_in_another_order_than_the_host_train_the_same(icu: tuple[str, str], tmp_path: Path) -> None:
    """Modalities and channels are found by their names: the host's weights meet what they were trained on."""
    pack(Reordered(TinyOptions()), str(tmp_path / "other"), chunk_records=6)
    one, two = on_host(icu, tmp_path / "one"), on_host((str(tmp_path / "other"), icu[1]), tmp_path / "two")
    for run_config in (one, two):
        run_config.training.epochs = 1
    results = [job(1, run_config) for run_config in (one, two)]
    assert losses(tmp_path / "one") == losses(tmp_path / "two") and results[0]["metrics"] == results[1]["metrics"]
    schemas = [open_checkpoint(result["checkpoint"]).meta["schema"]["modalities"] for result in results]
    assert schemas[0] == schemas[1], "the checkpoint says the host's order"
    with pytest.raises(ValueError, match=r"has the modalities of host .* in another order"):
        load_host(icu[1], Reordered.schema)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.long
def test_baselines_run_on_a_host(icu: tuple[str, str], tmp_path: Path, method: str) -> None:
    run_config = on_host(icu, tmp_path, method=method)
    run_config.training.epochs = 1
    assert job(1, run_config)["status"] == "finished"


def test_a_job_on_a_host_is_planned_from_the_shapes_of_its_checkpoint(icu: tuple[str, str], tmp_path: Path) -> None:
    run_config = on_host(icu, tmp_path)
    run_config.training.epochs = 1
    manifest = open_manifest(icu[0])
    plan = plan_replicated(
        job_type(run_config.job), run_config, manifest.schema, manifest.statistics["default"], find_device("h100"), 1
    )
    assert plan["fits"] and plan["flops"] > 0 and plan["bytes"]["activations"] > 0
    result = job(1, run_config)
    tensors = safetensors.torch.load_file(Path(result["adapter"]) / "adapter.safetensors")
    about = json.loads((Path(result["adapter"]) / "adapter.json").read_text())
    trained = [value for name, value in tensors.items() if name not in about["buffers"]]
    assert plan["parameters"]["trained"] == sum(value.numel() for value in trained)
    assert plan["parameters"]["frozen"] == about["backbone"]["parameters"]


@pytest.mark.parametrize("what", ["towers", "host"])
@pytest.mark.long
def test_bf16_trains_and_stays_near_fp32(icu: tuple[str, str], vqa: str, tmp_path: Path, what: str) -> None:
    """Without dropout and noise; masters and moments are fp32, routing and importance too."""
    found = {}
    for precision in ("fp32", "bf16"):
        steady = {"dropout": 0.0, "noise": 0.0}
        if what == "host":
            run_config = on_host(icu, tmp_path / precision, **steady)
            run_config.model.modality_dropout = 0.0
        else:
            run_config = recipe(vqa, tmp_path / precision, **{f"mope__{key}": value for key, value in steady.items()})
        run_config.parallel.precision = precision  # type: ignore[assignment]
        run_config.training.epochs = 1
        result = job(1, run_config)
        assert result["status"] == "finished"
        found[precision] = losses(tmp_path / precision)
        checkpoint = newest_checkpoint(str(tmp_path / precision / "run"))
        keys = [torch.tensor(value) for name, value in checkpoint.meta["buffers"].items() if ".keys_" in name]
        assert keys and all(torch.allclose(k.mT @ k, torch.eye(3), atol=1e-6) for k in keys)
    exact, rounded = found["fp32"], found["bf16"]
    assert exact.keys() == rounded.keys()
    assert max(abs(exact[step] - rounded[step]) / exact[step] for step in exact) < 0.01
    assert exact != rounded, "bf16 was really used"


def test_hosts_that_do_not_fit_are_named(icu: tuple[str, str], vqa: str, tmp_path: Path) -> None:
    gone = on_host(icu, tmp_path)
    assert gone.mope is not None
    gone.mope.host = str(tmp_path / "nothing")
    with pytest.raises(AssertionError, match=r"mope.host: .*nothing holds no committed checkpoint"):
        job(1, gone)
    other = on_host(icu, tmp_path)
    other.data.url, other.training.tasks = vqa, ["answer"]
    with pytest.raises(AssertionError, match=r"data set easy_vqa does not fit host .*: its modalities are image"):
        job(1, other)


def test_records_without_a_picture_are_named_before_anything_is_written(tmp_path: Path) -> None:
    """Also those of the test part, which nobody reads before the end of training."""
    whole = open_manifest(packed_vqa(tmp_path / "whole"))
    source = create_source("easy_vqa", {"path": str(tmp_path / "whole" / "source"), "size": 16, "val": 0.25})
    plain = source.read

    def read(unit: object, notes: Counter[str]) -> Iterator[Record]:
        for record in plain(unit, notes):
            if record.splits == {"default": "test"} and record.key.endswith("7"):
                record.values.pop("image")
            yield record

    source.read = read  # type: ignore[method-assign]
    pack(source, str(tmp_path / "data"), chunk_records=8)
    lost = [key for key in keys_of(open_manifest(str(tmp_path / "data")), "test") if key.endswith("7")]
    assert lost and open_manifest(str(tmp_path / "data")).records == whole.records
    with pytest.raises(
        AssertionError, match=rf"{len(lost)} records of part test, the first is {lost[0]}, have no image"
    ):
        job(2, recipe(str(tmp_path / "data"), tmp_path / "runs", parallel__workers=2))
    # A rank that was ended for the other's failure may leave its name in the lease.
    left = [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and "lease" not in path.parts]
    assert not left
    learned = recipe(str(tmp_path / "data"), tmp_path / "runs", mope__missing="learned", training__epochs=1)
    assert job(1, learned)["status"] == "finished"


def keys_of(manifest: Manifest, part: str) -> list[str]:
    column = manifest.column("default", part)
    indexes = [read_index(manifest, shard) for shard in range(len(manifest.shards))]
    return [key for index in indexes for key, mine in zip(index.keys, index.members(column), strict=True) if mine]


def test_an_adapter_stands_for_its_checkpoint(vqa: str, tmp_path: Path) -> None:
    result = job(1, recipe(vqa, tmp_path, training__epochs=1))
    folder = Path(result["adapter"])
    assert sum(path.stat().st_size for path in folder.iterdir()) < 200_000
    tensors = safetensors.torch.load_file(folder / "adapter.safetensors")
    assert any(name.endswith("keys_QK") for name in tensors) and not any(name.startswith("towers.") for name in tensors)
    again = job(1, evaluation_config(open_checkpoint(str(folder))))
    assert again["metrics"] == result["metrics"]
    one_by_one = evaluation_config(open_checkpoint(str(folder)))
    one_by_one.training.eval_batch_size = 1
    assert job(1, one_by_one)["metrics"] == pytest.approx(result["metrics"], abs=1e-5), "neighbours do not help"
    shown = {path.name for path in (tmp_path / "run" / "mope").iterdir()}
    assert {"expert_by_class.json", "expert_by_class.png", "expert_by_site.png", "examples.png"} <= shown
    table = json.loads((tmp_path / "run" / "mope" / "expert_by_class.json").read_text())
    assert sum(table["sites"]["image.0"][table["classes"].index("yes")]) == pytest.approx(1, abs=1e-4)
    data = bytearray((folder / "adapter.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "adapter.safetensors").write_bytes(bytes(data))
    with pytest.raises(AssertionError, match=r"adapter.safetensors does not match its digest"):
        job(1, evaluation_config(open_checkpoint(str(folder))))
    about = json.loads((folder / "adapter.json").read_text())
    about["backbone"]["digest"] = "0" * 64
    (folder / "adapter.json").write_text(json.dumps(about))
    with pytest.raises(AssertionError, match=r"trained on a backbone with digest 000000000000"):
        job(1, evaluation_config(open_checkpoint(str(folder))))


@pytest.mark.long
def test_mlflow_knows_the_job_its_backbone_and_a_registered_version(icu: tuple[str, str], tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    host = config(icu[0], tmp_path, training__tasks=["kind"], training__epochs=1, tracking={"uri": uri})
    host.name = "host"
    backbone = job(1, host)
    tuned = on_host((icu[0], str(tmp_path / "host")), tmp_path)
    tuned.tracking = host.tracking.model_copy(update={"register_as": "stays"})
    tuned.training.epochs = 1
    result = job(1, tuned)
    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(result["run_id"]).data
    assert run.tags["job"] == "mope" and run.tags["backbone.runs"] == backbone["run_id"]
    trained, frozen = run.metrics["parameters/trained"], run.metrics["parameters/frozen"]
    assert run.metrics["parameters/share"] == pytest.approx(trained / frozen)
    (version,) = client.search_model_versions("name = 'stays'")
    assert version.tags["uri"] == result["adapter"] and version.tags["backbone.digest"] == run.tags["backbone.digest"]
    assert version.tags["backbone.runs"] == backbone["run_id"], "the version leads to the run that made its backbone"
    artifacts = {item.path for item in client.list_artifacts(result["run_id"], "adapter")}
    assert artifacts == {"adapter/adapter.safetensors", "adapter/adapter.json"}


def test_features_that_are_read_once_change_nothing(vqa: str, tmp_path: Path) -> None:
    steady = {"mope__dropout": 0.0, "mope__noise": 0.0}
    job(1, recipe(vqa, tmp_path / "plain", **steady))
    whole = job(1, recipe(vqa, tmp_path / "cached", **steady, mope__cache=True))
    one, two = losses(tmp_path / "plain"), losses(tmp_path / "cached")
    assert max(abs(one[step] - two[step]) / one[step] for step in one) < 1e-5
    job(1, recipe(vqa, tmp_path / "broken", **steady, mope__cache=True), stop_at=3)
    again = job(1, recipe(vqa, tmp_path / "broken", **steady, mope__cache=True))
    assert again["metrics"] == whole["metrics"]
    same(tmp_path, "cached", "broken")


def test_a_tower_whose_features_are_known_does_not_run() -> None:
    network = model(section()).eval()
    records = batch(4)
    expected = network(records).logits["answer"]
    network.prepare([batch(4)], records=5)
    network._towers()["text"].encode_tokens = None  # type: ignore[assignment, method-assign]
    assert list(network.features) == ["text"]
    network.eval()
    assert torch.allclose(network(records).logits["answer"], expected, atol=1e-5)
    with pytest.raises(TypeError):
        network(batch(5))
