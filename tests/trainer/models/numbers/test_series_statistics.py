"""Whole series in a few numbers, against loops and by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from data_shards import Batch, SeriesGroup
from parallel.moe.segments import Segments
from tests.trainer.models import timed_batch
from trainer.models.encoders.series import SeriesEncoder
from trainer.models.fusemoe.model import FuseMoE
from trainer.models.layers.ragged import offsets_to_ids
from trainer.models.numbers.series_statistics import (
    INPUTS,
    OTHERS,
    SCORES,
    SeriesStatistics,
    channel_statistics,
    statistics_reference,
)
from trainer.models.numbers.steps import STEPS

TOKEN = {"model__series__statistics": "token"}


def found(score_O: Any, time_O: Any, segment_O: Any, segments: int) -> list[dict[str, float]]:
    by_feature = Segments.of(torch.tensor(segment_O, dtype=torch.int64), segments, ascending=True)
    tables = channel_statistics(torch.tensor(score_O), torch.tensor(time_O), by_feature)
    rows = torch.cat(tables, 1).tolist()
    return [dict(zip((*SCORES, *OTHERS), row, strict=True)) for row in rows]


def test_by_hand_also_of_one_event_of_none_and_of_equal_times() -> None:
    """Channel 0: 1, 2, 6 at 0, 1/4, 1/2; 1: nothing; 2: one event; 3: two at once; 4: nothing behind the last event."""
    got = found([1.0, 2.0, 6.0, -3.0, 4.0, -2.0], [0.0, 0.25, 0.5, 0.75, 0.6, 0.6], [0, 0, 0, 2, 3, 3], 5)
    assert got[0] == pytest.approx(
        {"mean": 3, "min": 1, "max": 6, "first": 1, "last": 6, "spread": math.sqrt(14 / 3), "seen": 1,
         # A slope of 10 a horizon, and times deviate by 1/4 * sqrt(2/3).
         "count": math.log(4), "trend": 10 * 0.25 * math.sqrt(2 / 3), "first_time": 0, "last_time": 0.5,
         "covered": 0.5}, abs=1e-6,
    )  # fmt: skip
    assert got[1] == got[4] == dict.fromkeys((*SCORES, *OTHERS), 0.0)
    one = {"mean": -3, "min": -3, "max": -3, "first": -3, "last": -3, "spread": 0, "seen": 1, "count": math.log(2)}
    assert got[2] == pytest.approx({**one, "trend": 0, "first_time": 0.75, "last_time": 0.75, "covered": 0}, abs=1e-6)
    two = {"mean": 1, "min": -2, "max": 4, "first": 4, "last": -2, "spread": 3, "seen": 1, "count": math.log(3)}
    assert got[3] == pytest.approx({**two, "trend": 0, "first_time": 0.6, "last_time": 0.6, "covered": 0}, abs=1e-6)
    assert found([], [], [], 2) == [dict.fromkeys((*SCORES, *OTHERS), 0.0)] * 2


def test_are_those_of_the_loops() -> None:
    rng = np.random.default_rng(0)
    segment_O = np.sort(rng.integers(0, 40, 300))
    time_O = rng.uniform(0, 1, 300).astype(np.float32)
    time_O[rng.random(300) < 0.3] = 0.5
    time_O = time_O[np.lexsort((time_O, segment_O))]
    score_O = rng.normal(size=300).astype(np.float32)
    got = found(score_O, time_O, segment_O, 42)
    for segment, values in enumerate(got):
        own = segment_O == segment
        expected = statistics_reference(score_O[own].tolist(), time_O[own].tolist())
        assert values == pytest.approx(expected, abs=2e-6), segment
        assert abs(values["trend"]) <= values["spread"] + 1e-6


def records() -> list[dict[str, Any]]:
    """The second has both channels, the third one event, the fourth a series without events, the fifth none."""
    return [
        {"lab": [(0.5, 0, 1.0), (2.0, 0, -1.0), (9.5, 1, 3.0)], "remark": b"a"},
        {"lab": [(1.0, 0, 0.5), (1.0, 0, 2.5), (3.0, 1, -2.0), (7.0, 1, 0.0)]},
        {"lab": [(10.0, 1, 1.5)]},
        {"lab": []},
        {"remark": b"b"},
    ]


def parts(model: FuseMoE, batch: Batch) -> tuple[SeriesEncoder, SeriesGroup, torch.Tensor]:
    """The encoder of series, its group, and the last token of each pair."""
    encoder: Any = model.encoders["series"]
    token_PTD = encoder(batch.groups["series"], model.lay_out(batch).groups["series"])
    return encoder, batch.groups["series"], token_PTD[:, -1]  # type: ignore[return-value]


def test_the_token_is_the_projection_of_the_statistics() -> None:
    model, batch = timed_batch.build(**TOKEN, model__bins=3), timed_batch.batch_of(records())
    encoder, group, token_PD = parts(model, batch)
    module = encoder.statistics
    assert isinstance(module, SeriesStatistics) and INPUTS == 6 * STEPS + 6
    pair_O = offsets_to_ids(group.offsets, len(group.values_O))
    for pair in range(group.pairs):
        features = []
        for channel in range(2):
            own = (pair_O == pair) & (group.channels_O == channel)
            # Statistics of the data are those of normal scores, so a value is its own score, up to straight lines.
            score_R = module.scale(group.values_O[own], torch.zeros(int(own.sum())).long(), group.channels_O[own])
            values = statistics_reference(score_R.tolist(), (group.times_O[own] / 10).tolist())
            steps = module.steps(torch.tensor([values[name] for name in SCORES])) * values["seen"]
            features.append(torch.cat([steps.flatten(), torch.tensor([values[name] for name in OTHERS])]))
        expected = torch.cat(features) @ module.project.weight[0, : 2 * INPUTS] + module.project.bias[0]
        torch.testing.assert_close(token_PD[pair], expected, rtol=0, atol=1e-5)
    plan = model.lay_out(batch).tokens
    of_series = plan.modality_N[: plan.encoded] == 0
    assert plan.bin_N[: plan.encoded][of_series].view(4, 4).tolist() == [[0, 1, 2, 2]] * 4
    assert plan.final_N[: plan.encoded][of_series].view(4, 4).tolist() == [[False, False, True, True]] * 4


def test_with_quantiles_values_are_scored_once_and_without_the_grid_keeps_its_scale() -> None:
    batch = timed_batch.batch_of(records())
    tokens = {}
    for scale in ("standard", "quantile"):
        model = timed_batch.build(**TOKEN, model__scale=scale)
        encoder, _, tokens[scale] = parts(model, batch)
        assert (encoder.scale is encoder.statistics.scale) == (scale == "quantile")  # type: ignore[union-attr]
    assert torch.equal(tokens["standard"], tokens["quantile"])


@pytest.mark.parametrize("attention", ["per_modality", "joint", "factorized"])
def test_no_sample_sees_another_and_every_weight_learns(attention: str) -> None:
    model = timed_batch.build(**TOKEN, model__scale="quantile", model__attention=attention).eval()
    batch = timed_batch.batch_of(timed_batch.records_of(8, most=6))
    with torch.no_grad():
        whole, alone = model(batch).logits, model(timed_batch.take(batch, 3)).logits
    for task in whole:
        torch.testing.assert_close(whole[task][3], alone[task][3], rtol=0, atol=2e-6)
    changed = replace(batch.groups["series"])
    assert isinstance(changed, SeriesGroup)
    pair_O = offsets_to_ids(changed.offsets, len(changed.values_O))
    victim = int(changed.sample_P[pair_O[0]])
    changed.values_O = torch.where(changed.sample_P[pair_O] == victim, changed.values_O + 1, changed.values_O)
    with torch.no_grad():
        moved = model(batch.changed(batch.present_BM, {**batch.groups, "series": changed})).logits["days"]
    assert ((moved - whole["days"]).abs()[:, 0] > 1e-5).nonzero()[:, 0].tolist() == [victim]
    model(batch).logits["days"].square().sum().backward()
    module: Any = model.encoders["series"].statistics
    assert int((module.project.weight.grad.abs().sum(-1) > 0).sum()) > INPUTS and module.project.bias.grad.any()


def test_gradients_in_bf16_are_those_of_fp32() -> None:
    batch = timed_batch.batch_of(timed_batch.records_of(64, most=8))
    grads = []
    for kind in (torch.float32, torch.bfloat16):
        model = timed_batch.build(**TOKEN).to(kind)
        _, _, token_PD = parts(model, batch)
        direction_D = torch.linspace(-1, 1, token_PD.shape[1])
        (token_PD.float() * direction_D).sum().backward()
        module: Any = model.encoders["series"].statistics
        grads.append(torch.cat([module.project.weight.grad.float().flatten(), module.project.bias.grad.float()[0]]))
    assert float((grads[1] - grads[0]).norm() / grads[0].norm()) < 0.01


def test_a_batch_without_series_and_one_without_events() -> None:
    model = timed_batch.build(**TOKEN, model__scale="quantile")
    for given in ([{"remark": b"a"}], [{"lab": []}, {"lab": []}]):
        logits = model(timed_batch.batch_of(given)).logits  # type: ignore[arg-type]
        assert all(torch.isfinite(value).all() and len(value) == len(given) for value in logits.values())
        logits["days"].sum().backward()
