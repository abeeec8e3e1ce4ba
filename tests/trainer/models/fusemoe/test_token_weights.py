"""What a record is said to cost, against the tokens that the model makes of it and the FLOPs that torch counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_shards import Manifest, StepLoader
from data_shards.loading.costs import Held, read_costs
from parallel import LocalDispatcher
from tests.trainer.models import timed_batch
from tests.trainer.tiny import config
from trainer.models.flops import FlopCounter
from trainer.models.fusemoe.job_type import FuseMoEJob
from trainer.models.fusemoe.model import FuseMoE, resolve_attention
from trainer.models.fusemoe.token_weights import token_weights


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__missing_embedding": False, "model__vector__tokens": 3},
        {"model__attention": "factorized", "model__moe__granularity": "sample", "model__bins": 7},
        {"model__series__statistics": "token"},
    ],
)
def test_costs_from_the_index_are_the_tokens_of_the_model(manifest: Manifest, changes: dict[str, Any]) -> None:
    run = config(manifest.url, Path("unused"), **changes)
    tasks = [task.name for task in manifest.schema.tasks]
    model = FuseMoE(manifest.schema, tasks, manifest.statistics["default"], run.model, LocalDispatcher(), 0)
    loader = StepLoader(manifest, run.data, "train", 100, shuffle=False)
    weights = FuseMoEJob().token_weights(run, manifest.schema, model)
    cost_N = read_costs(loader.part, replace(weights, unit_M=np.zeros(7)))
    batch = next(loader.steps(0)).micro_batches[0]
    with torch.no_grad():
        _, layout = model.embed(batch)
    assert len(batch) == len(cost_N) == 32
    assert cost_N.tolist() == torch.bincount(layout.sample_N, minlength=32).tolist()
    assert len(set(cost_N.tolist())) > 5


def test_what_lengths_cost(manifest: Manifest) -> None:
    """Of lab, vital, age, score, scan, note, ecg; by the numbers of the recipe, D = 16, two layers, top 2 of 4."""
    run = config(manifest.url, Path("unused"), model__moe__noise=0.0)
    weights = token_weights(FlopCounter(manifest.schema, {}, run.model, resolve_attention(run.model, 7)))
    assert weights.present_M.tolist() == [4, 4, 1, 1, 4, run.model.text.tokens, 3]
    assert weights.absent_M.tolist() == [1] * 7
    # Projections of attention, router, two experts; the head's pooling. FLOPs of one token.
    token = 2 * (8 * 16 * 16 + 2 * 16 * 4 + 2 * 2 * 2 * 16 * 16) + 2 * 16 * (16 + run.model.latents)
    text = run.model.text
    note = (text.layers * 24 * 16 * 16 + 2 * 16 * 16) / text.stride / token
    ecg = 2 * 2 * 16 * (2 * 4 + 16) / 4 / token
    event = 2 * 4 * run.model.series.heads * run.model.series.time_dim / token
    assert weights.unit_M == pytest.approx([event, event, 0, 0, 0, note, ecg], rel=1e-9)


def held_by(records: list[dict[str, Any]]) -> Held:
    """What an index says of the records of `timed_batch`, by hand."""
    lengths, objects = np.full((2, len(records), len(timed_batch.SCHEMA.modalities)), -1)
    for row, record in enumerate(records):
        for name, value in record.items():
            number = timed_batch.SCHEMA.numbers[name]
            spec = timed_batch.SCHEMA.modalities[number]
            values = [entry[-1] for entry in value] if spec.has_objects else [value]
            ragged = spec.kind in ("text", "waveform", "codes", "series")
            lengths[row, number] = sum(len(one) if ragged else 1 for one in values)
            objects[row, number] = len(values) if spec.has_objects else 1
    return Held(objects >= 0, objects.clip(0), lengths.clip(0))


@pytest.mark.parametrize("missing", [True, False])
@pytest.mark.parametrize("way", ["tokens", "utde"])
def test_costs_of_timed_objects_are_the_tokens_of_the_model(way: str, missing: bool) -> None:
    changes = {"model__objects__irregularity": way, "model__codes__irregularity": way}
    model = timed_batch.build(**changes, model__missing_embedding=missing, model__text__tokens=2)
    weights = token_weights(FlopCounter(timed_batch.SCHEMA, {}, model.config, "joint"))
    records = timed_batch.records_of(30)
    # Arithmetic apart: of codes that stand for themselves the token is counted with it.
    tokens = np.where([spec.timed and spec.kind == "codes" for spec in timed_batch.SCHEMA.modalities], 1.0, 0.0)
    of_object = weights.object_M if way == "tokens" else np.zeros(12)
    assert (weights.unit_M >= tokens * (way == "tokens")).all()
    exact = replace(weights, unit_M=tokens * (way == "tokens"), object_M=of_object)
    found = exact.tokens(held_by(records), np.arange(12))
    with torch.no_grad():
        _, layout = model.embed(timed_batch.batch_of(records))
    assert found.tolist() == torch.bincount(layout.sample_N, minlength=30).clamp_min(1).tolist()
    assert len(set(found.tolist())) > 5


def test_what_bringing_objects_to_the_grid_costs() -> None:
    """Of a scan: four queries read its 4 tokens, 4 bins x 2 heads attend to it. D = 16, in tokens of the blocks."""
    grid = {"model__objects__irregularity": "mtand", "model__objects__heads": 2, "model__moe__noise": 0.0}
    model = timed_batch.build(**grid, model__codes__irregularity="mtand")
    counter = FlopCounter(timed_batch.SCHEMA, {}, model.config, "joint")
    weights = token_weights(counter)
    token = 2 * (8 * 16 * 16 + 2 * 16 * 4 + 2 * 2 * 2 * 16 * 16) + 2 * 16 * (16 + model.config.latents)
    read, attend = 4 * (4 * 4 * 16 + 2 * 16 * 16), 2 * 4 * 2 * (16 + 16)
    assert weights.object_M is not None and weights.empty_M is not None
    assert weights.object_M[2] == pytest.approx((read + attend) / token, rel=1e-9)
    value = 2 * 2 * 2 * 16  # of the group: some of its codes have values
    assert weights.unit_M[7] == pytest.approx((attend + value) / token, rel=1e-9)
    assert weights.present_M[[2, 7]].tolist() == [4, 4] and not weights.empty_M.any()
