"""The cost model against what a real build occupies and what real batches ask for."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from data_shards import StepLoader, open_manifest
from data_shards.records.statistics import Accumulator, SplitStatistics
from data_shards.shards.manifest import Manifest
from launch.cli import app
from launch.plan.constants import padded_group
from launch.plan.cost import CostModel, Layout, ranks_of_a_token
from launch.plan.layouts import make_plan
from launch.plan.statistics import stated_statistics
from parallel import LocalDispatcher, MoEConfig
from tests.ranks import run_ranks
from tests.saved_activations import saved_bytes
from tests.trainer.models import timed_batch
from tests.trainer.tiny import SCHEMA, config, packed
from tests.trainer.training.test_loop import Rank
from trainer.config.run_config import RunConfig
from trainer.models.flops import parameter_counts
from trainer.models.fusemoe.model import FuseMoE
from trainer.session import build_session
from trainer.worker.devices import find_device


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return open_manifest(packed(tmp_path_factory.mktemp("plan") / "data"))


def test_without_data_lengths_are_as_declared() -> None:
    tables = stated_statistics(SCHEMA, 0.5, records=100).modalities
    assert (tables["note"].present, tables["note"].mean, tables["note"].max) == (50, (24.0,), (24.0,))
    assert (tables["ecg"].present, tables["ecg"].count) == (50, (50 * 40, 50 * 40))
    assert tables["vital"].count == (500,)


def cost_model(run: RunConfig, manifest: Manifest, gpu: str = "h100") -> CostModel:
    return CostModel(run, manifest.schema, manifest.statistics["default"], find_device(gpu))


def _occupied(rank: int, world: int, tree: dict[str, Any]) -> dict[str, Any]:
    """Bytes that a real engine holds on this rank, by kind."""
    run = RunConfig.model_validate(tree)
    opened = open_manifest(run.data.url)
    session = build_session(run, Rank(rank, world), opened, opened.schema, opened.statistics["default"])
    zero = session.engine._zero
    masters = zero.single_partition_of_fp32_groups
    moments = [zero.optimizer.state[flat][name] for flat in masters for name in ("exp_avg", "exp_avg_sq")]
    expert = [group.get("moe", False) for group in zero.optimizer.param_groups]
    flats = list(zip(expert, zero.bit16_groups_flat, strict=True))
    return {
        "replicated_parameters": sum(flat.nbytes for is_expert, flat in flats if not is_expert),
        "expert_parameters": sum(flat.nbytes for is_expert, flat in flats if is_expert),
        "master_weights": sum(flat.nbytes for flat in masters),
        "moments": sum(moment.nbytes for moment in moments),
        "owned": sum(fragment.numel for fragment in session.engine.fragments()),
        "counts": parameter_counts(session.engine.logical_parameters(), run.model.moe.top_k),
    }


FINE = {"model__series__statistics": "fine_kernels", "model__waveform__statistics": "fine_kernels"}
FINE |= {"model__scale": "quantile", "model__vector__numbers": "piecewise", "model__head__members": 3}


@pytest.mark.parametrize(
    ("world", "degree", "precision", "stage", "changes"),
    [
        (1, 1, "fp32", 1, {}),
        (2, 2, "fp32", 1, {}),
        (2, 2, "bf16", 2, {}),
        (3, 1, "bf16", 1, {}),
        (1, 1, "fp32", 1, FINE | {"model__head__skip": "linear"}),
        (2, 2, "bf16", 1, {"model__waveform__statistics": "kernels", "model__image__network": "convolutions"}),
    ],
)
def test_bytes_equal_those_of_a_real_build(
    manifest: Manifest, tmp_path: Path, world: int, degree: int, precision: str, stage: int, changes: dict[str, Any]
) -> None:
    run = config(
        manifest.url,
        tmp_path,
        model__dim=24,
        model__heads=2,
        model__moe__router="per_modality",
        parallel__workers=world,
        parallel__expert_parallel=degree,
        parallel__precision=precision,
        parallel__zero_stage=stage,
        **changes,
    )
    model = cost_model(run, manifest)
    planned = model.cost(Layout(world, degree, stage, 1, False)).bytes
    found = run_ranks(_occupied, world, run.model_dump(mode="json"))
    for rank in found:
        for kind in ("replicated_parameters", "expert_parameters", "master_weights", "moments"):
            assert planned[kind] == rank[kind], kind
        assert rank["counts"] == model.parameters()
    assert sum(rank["owned"] for rank in found) == model.parameters()["total"]


def test_expected_batches_are_the_real_ones_on_average(manifest: Manifest, tmp_path: Path) -> None:
    run = config(manifest.url, tmp_path, training__batch_size=8)
    for attention in ("joint", "factorized"):
        model = cost_model(
            run.model_copy(update={"model": run.model.model_copy(update={"attention": attention})}), manifest
        )
        batches = [step.micro_batches[0] for step in StepLoader(manifest, run.data, "train", 8, 0, 1).steps(0)]
        mean = sum(model.counter.measure(batch) for batch in batches) / len(batches)
        expected = torch.tensor(model.features, dtype=torch.float64)
        torch.testing.assert_close(expected[:-2], mean[:-2], rtol=0, atol=0.3)  # means, up to the rounding of lengths
        torch.testing.assert_close(expected[-2:], mean[-2:], rtol=0.15, atol=0)  # squares of lengths
        assert model.counter.step_flops(model.features) == pytest.approx(model.counter.step_flops(mean), rel=0.05)


@pytest.mark.parametrize("attention", ["joint", "factorized"])
def test_modelled_activations_are_near_the_saved_ones(manifest: Manifest, tmp_path: Path, attention: str) -> None:
    run = config(manifest.url, tmp_path, model__dim=64, model__attention=attention, training__batch_size=16)
    model = cost_model(run, manifest)
    torch.manual_seed(0)
    built = FuseMoE(manifest.schema, model.tasks, manifest.statistics["default"], run.model, LocalDispatcher(), 0)
    batch = next(StepLoader(manifest, run.data, "train", 16, 0, 1).steps(0)).micro_batches[0]
    modelled = model.cost(Layout(1, 1, 1, 1, False)).bytes["activations"]
    assert 0.6 < modelled / saved_bytes(built, batch) < 1.6


def timed_statistics(records: list[dict[str, Any]]) -> SplitStatistics:
    """Of the records of `timed_batch`, as packing them would count them."""
    found = Accumulator(timed_batch.SCHEMA)
    found.add([timed_batch.columns_of(record) for record in records])
    return found.summary()


def test_cells_of_series_on_even_times_are_about_as_many_as_expected(manifest: Manifest, tmp_path: Path) -> None:
    model = cost_model(config(manifest.url, tmp_path, training__batch_size=8, **FINE), manifest)
    data = config(manifest.url, tmp_path).data
    batches = [step.micro_batches[0] for step in StepLoader(manifest, data, "train", 8, 0, 1).steps(0)]
    mean = sum(model.counter.measure(batch) for batch in batches) / len(batches)
    place = model.counter.features.index("cells/series")
    assert model.features[place] == pytest.approx(float(mean[place]), rel=0.15)  # the densest channel is not always one


@pytest.mark.parametrize("way", ["tokens", "mtand", "imputation", "utde"])
def test_timed_objects_and_codes_are_planned_as_they_are(tmp_path: Path, way: str) -> None:
    """Expected tokens, FLOPs and activations of a batch, of statistics of its own records."""
    schema, records = timed_batch.SCHEMA, timed_batch.records_of(64, most=6)
    statistics = timed_statistics(records)
    for attention in ("joint", "factorized"):
        changes = {"model__objects__irregularity": way, "model__codes__irregularity": way}
        changes |= {"model__text__positions": 10, "model__dim": 64, "model__attention": attention}
        run = config("unused", tmp_path, **changes, training__batch_size=64)
        model = CostModel(run, schema, statistics, find_device("h100"))
        built = timed_batch.build(**changes)
        batch = timed_batch.batch_of(records)
        measured = dict(zip(model.counter.features, model.counter.measure(batch).tolist(), strict=True))
        expected = dict(zip(model.counter.features, model.features, strict=True))
        # A pair without objects is one token, which statistics do not tell.
        for name, value in measured.items():
            roughly = 0.35 if name.startswith(("squares", "text_squares", "within")) else 0.15
            assert expected[name] == pytest.approx(value, rel=roughly), name
        planned = model.cost(Layout(1, 1, 1, 1, False))
        assert planned.flops == pytest.approx(model.counter.step_flops(list(measured.values())), rel=0.1)
        assert 0.6 < planned.bytes["activations"] / saved_bytes(built, batch) < 1.6
        dense = sum(p.numel() for name, p in built.named_parameters() if ".moe.experts." not in name)
        assert planned.bytes["replicated_parameters"] == pytest.approx(4 * dense, rel=1e-4)  # aligned groups


def test_stated_objects() -> None:
    """Ten where nothing is said, or the most that are kept."""
    few = replace(timed_batch.SCHEMA.modalities[1], max_objects=3)
    schema = replace(timed_batch.SCHEMA, modalities=(few, *timed_batch.SCHEMA.modalities[2:]))
    tables = stated_statistics(schema, 0.5).modalities
    means = {name: table.objects.mean if table.objects else None for name, table in tables.items()}
    assert [means[name] for name in ("note", "scan", "drug", "ward", "age")] == [3.0, 10.0, 10.0, 10.0, None]
    assert tables["beat"].count == (40 * 10 * 500,) * 2 and tables["note"].count == (3 * 500,)


def test_what_does_not_fit_gets_a_layout_that_does(manifest: Manifest, tmp_path: Path) -> None:
    run = config(
        manifest.url,
        tmp_path,
        model__dim=4096,
        model__layers=8,
        model__moe__experts=64,
        model__moe__hidden=8192,
        parallel__precision="bf16",
        training__batch_size=1024,
    )
    model = cost_model(run, manifest)
    plan = make_plan(run, model, 16)
    assert not plan["fits"]
    assert plan["nearest"]["fits"] and plan["nearest"]["world"] >= 16
    assert 64 % plan["nearest"]["expert_parallel"] == 0
    wide = make_plan(run, model, 4096)
    assert wide["bytes"]["master_weights"] < plan["bytes"]["master_weights"]
    assert wide["links"]["dense_reduce"] == "network"


def test_ranks_that_serve_a_token() -> None:
    """By counting all choices of 2 of 8 experts on 4 ranks; groups keep a token on their ranks."""
    moe = MoEConfig(experts=8, top_k=2)
    counted = [len({a // 2, b // 2}) for a, b in itertools.combinations(range(8), 2)]
    assert ranks_of_a_token(moe, 4) == pytest.approx(sum(counted) / len(counted))
    assert ranks_of_a_token(moe, 1) == 1
    assert ranks_of_a_token(moe.model_copy(update={"expert_groups": 4, "groups_per_token": 1}), 4) == 1
    both = [len({a // 2, b // 2}) for a, b in itertools.combinations(range(4), 2)]
    limited = moe.model_copy(update={"expert_groups": 4, "groups_per_token": 2})
    assert ranks_of_a_token(limited, 4) == pytest.approx(sum(both) / len(both))


def test_arithmetic_of_padding_and_stated_presence(manifest: Manifest) -> None:
    assert [padded_group(10, 1), padded_group(10, 3), padded_group(12, 3)] == [10, 12, 12]
    half = stated_statistics(manifest.schema, 0.5)
    assert half.modalities["note"].present == 500 and half.modalities["note"].mean == (24.0,)


def test_the_verb_prints_tables_and_one_json_line(manifest: Manifest, tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(json.dumps({"data": {"url": "nowhere"}, "model": {"dim": 16, "heads": 2, "text": {"heads": 2}}}))
    (tmp_path / "schema.json").write_text(manifest.schema.to_json())
    words = ["plan", str(recipe), "model.image.patch=2", "--schema", str(tmp_path / "schema.json"), "--presence", "0.5"]
    answer = CliRunner().invoke(app, [*words, "--gpus", "6", "--gpu", "a100"], catch_exceptions=False)
    result = json.loads(answer.stdout.splitlines()[-1])
    assert result["fits"] and result["gpus"] == 6 and result["gpu"] == "a100"
    assert set(result["bytes"]) >= {"replicated_parameters", "expert_parameters", "moments", "activations", "total"}
    assert "modelled" in answer.stderr


def test_a_plan_has_the_network_of_pictures_that_a_new_run_would_have(manifest: Manifest, tmp_path: Path) -> None:
    recipe, schema = tmp_path / "small.yaml", tmp_path / "schema.json"
    recipe.write_text(json.dumps({"data": {"url": "nowhere"}, "model": {"dim": 16, "image": {"patch": 2}}}))
    schema.write_text(manifest.schema.to_json())

    def parameters(*words: str) -> float:
        command = ["plan", str(recipe), *words, "--schema", str(schema), "--presence", "0.5", "--gpu", "a100"]
        answer = CliRunner().invoke(app, command, catch_exceptions=False)
        return float(json.loads(answer.stdout.splitlines()[-1])["bytes"]["replicated_parameters"])

    assert parameters() == parameters("model.image.network=convolutions")
    assert parameters() > parameters("model.image.network=patches")


def test_the_layout_is_the_one_that_a_run_prints_and_groups_across_nodes_are_noted(manifest: Manifest) -> None:
    run = config("nowhere", Path("/nowhere"), parallel__workers=16, parallel__expert_parallel=4, model__moe__experts=8)
    model = cost_model(run, manifest)
    plan = make_plan(run, model, 16)
    assert [line.split(": ")[0] for line in plan["layout"]] == ["node0", "node1"] and plan["note"] is None
    assert "rank 8 cuda:0 experts 0-1, rank 9 cuda:1 experts 2-3" in plan["layout"][1]
    run.model.moe.experts = run.parallel.expert_parallel = 16
    assert "would reach across nodes of 8 workers: choose one of [1, 2, 4, 8]" in make_plan(run, model, 16)["note"]
    run.parallel.experts_across_nodes = True
    assert make_plan(run, model, 16)["note"] is None
