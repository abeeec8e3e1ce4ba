"""What a record is said to cost, against the tokens that the model makes of it and the FLOPs that torch counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_shards import Manifest, StepLoader
from data_shards.loading.costs import read_costs
from parallel import LocalDispatcher
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
