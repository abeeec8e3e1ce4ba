"""The model: no sample sees another, absent modalities cost and mean nothing, every parameter learns."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from data_shards import Batch
from data_shards.shards.manifest import Manifest
from parallel import balance_losses
from parallel.moe.segments import Segments
from tests.trainer.models.tiny_model import batch_of, build
from trainer.models.encoders.series import TimeEmbedding, mtand_reference
from trainer.models.layers.attention import attend_ragged, attend_spans, attention_reference
from trainer.models.layers.grouped_linear import Blocks, GroupedLinear
from trainer.models.layers.missing import drop_modalities, keep_modalities, keyed_uniform
from trainer.models.layers.ragged import ragged
from trainer.models.layers.token_layout import Span, UnevenSpan


def take(batch: Batch, sample: int) -> Batch:
    """The batch with all modalities of the other samples removed; rows stay where they are."""
    keep_BM = torch.zeros_like(batch.present_BM)
    keep_BM[sample] = True
    return keep_modalities(batch, keep_BM)


@pytest.mark.parametrize("attention", ["per_modality", "joint", "factorized"])
@pytest.mark.parametrize("granularity", ["token", "bin", "sample"])
@pytest.mark.parametrize("router", ["joint", "per_modality"])
def test_no_sample_sees_another_and_evaluation_is_deterministic(
    manifest: Manifest, attention: str, granularity: str, router: str
) -> None:
    model = build(
        manifest, model__attention=attention, model__moe__granularity=granularity, model__moe__router=router
    ).eval()
    batch = batch_of(manifest)
    with torch.no_grad():
        whole, again = model(batch).logits, model(batch).logits
        alone = model(take(batch, 3)).logits
    for task in whole:
        assert torch.equal(whole[task], again[task])
        torch.testing.assert_close(whole[task][3], alone[task][3], rtol=0, atol=2e-6)


@pytest.mark.parametrize("statistics", ["token", "fine_kernels"])
def test_what_a_series_is_as_a_whole_is_of_its_own_sample(manifest: Manifest, statistics: str) -> None:
    changes = {"model__series__statistics": statistics, "model__scale": "quantile"}
    model, batch = build(manifest, **changes).eval(), batch_of(manifest)
    series = [manifest.schema.numbers[spec.name] for spec in manifest.schema.modalities if spec.kind == "series"]
    no_series_BM = batch.present_BM.clone()
    no_series_BM[:, series] = False
    with torch.no_grad():
        whole, one = model(batch).logits, model(take(batch, 3)).logits
        none = model(keep_modalities(batch, no_series_BM)).logits
        before = build(manifest, model__scale="quantile").eval()(batch).logits
    for task in whole:
        torch.testing.assert_close(whole[task][3], one[task][3], rtol=0, atol=2e-6)
        assert bool(none[task].isfinite().all()) and bool((whole[task] - none[task]).abs().max() > 1e-3)
        assert bool((whole[task] - before[task]).abs().max() > 1e-3)


def test_each_token_of_a_series_says_its_shapes(manifest: Manifest) -> None:
    """The token of the whole, and all of its grid, by as much."""
    batch, changes = batch_of(manifest), {"model__scale": "quantile"}
    model = build(manifest, model__series__statistics="fine_kernels", **changes).eval()
    encoder: Any = model.encoder("series")
    group, layout = batch.groups["series"], model.lay_out(batch).groups["series"]
    with torch.no_grad():
        said_PTD = encoder(group, layout)
        encoder.shapes = None
        more_PTD = said_PTD - encoder(group, layout)
    assert bool((more_PTD.abs().amax((1, 2)) > 1e-3).all())
    torch.testing.assert_close(more_PTD, more_PTD[:, :1].expand_as(more_PTD), rtol=0, atol=1e-5)


def test_perturbing_one_sample_changes_only_that_sample(manifest: Manifest) -> None:
    model = build(manifest).eval()
    batch = batch_of(manifest)
    series = batch.groups["series"]
    event_pair = torch.repeat_interleave(torch.arange(series.pairs), series.offsets.diff())  # type: ignore[attr-defined]
    victim = int(series.sample_P[event_pair[0]])
    values_O = series.values_O.clone()  # type: ignore[attr-defined]
    values_O[series.sample_P[event_pair] == victim] += 3.0
    changed = dataclasses.replace(
        batch, groups={**batch.groups, "series": dataclasses.replace(series, values_O=values_O)}
    )
    with torch.no_grad():
        before, after = model(batch).logits["days"][:, 0], model(changed).logits["days"][:, 0]
    moved = (before - after).abs() > 1e-5
    assert moved.nonzero()[:, 0].tolist() == [victim]


@pytest.mark.parametrize("attention", ["per_modality", "joint", "factorized"])
def test_every_parameter_learns_and_is_saved(manifest: Manifest, attention: str) -> None:
    model = build(manifest, model__attention=attention, model__moe__router="per_modality", model__ffn_hidden=16)
    batch = batch_of(manifest, 32)
    output = model(batch)
    loss = sum(logits.square().sum() for logits in output.logits.values())
    loss = loss + sum(balance_losses(output.routing, model.config.moe).values())
    loss.backward()  # type: ignore[union-attr]
    state = model.state_dict()
    for name, parameter in model.named_parameters():
        assert name in state
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("missing", [True, False])
def test_empty_batches_and_empty_samples(manifest: Manifest, missing: bool) -> None:
    model = build(manifest, model__missing_embedding=missing)
    batch = batch_of(manifest)
    nothing = keep_modalities(batch, torch.zeros_like(batch.present_BM))
    logits = model(nothing).logits
    assert all(torch.isfinite(value).all() and len(value) == len(batch) for value in logits.values())
    sum(value.sum() for value in logits.values()).backward()  # type: ignore[union-attr]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_an_absent_modality_adds_at_most_one_token(manifest: Manifest) -> None:
    batch = batch_of(manifest)
    for missing, expected in ((True, int((~batch.present_BM).sum())), (False, 0)):
        model = build(manifest, model__missing_embedding=missing)
        x_ND, layout = model.embed(batch)
        assert len(x_ND) - layout.encoded == expected


def test_indicator_tokens_are_learned_per_modality(manifest: Manifest) -> None:
    model = build(manifest)
    batch = batch_of(manifest)
    model(batch).pooled_BX.sum().backward()
    assert model.missing is not None and model.missing.weight.grad is not None
    touched = model.missing.weight.grad.abs().sum(1) > 0
    assert torch.equal(touched, (~batch.present_BM).any(0))


def test_grouped_linear_equals_the_loop() -> None:
    torch.manual_seed(0)
    layer = GroupedLinear(3, 5, 8)
    blocks = Blocks.of(torch.tensor([4, 0, 3]))
    x_NK = torch.randn(7, 5, requires_grad=True)
    torch.testing.assert_close(layer(x_NK, blocks), layer.reference(x_NK, blocks))
    weight_NF = torch.randn(7, 8)
    inputs = (x_NK, layer.weight, layer.bias)
    gradients = torch.autograd.grad((layer(x_NK, blocks) * weight_NF).sum(), inputs)
    expected = torch.autograd.grad((layer.reference(x_NK, blocks) * weight_NF).sum(), inputs)
    torch.testing.assert_close(gradients, expected)
    with pytest.raises(ValueError, match="multiple of 8"):
        GroupedLinear(2, 5, 6)


def test_attention_kernels_equal_the_loop() -> None:
    torch.manual_seed(0)
    sequence_N = torch.tensor([1, 0, 1, 4, 0, 0])
    qkv_ND = torch.randn(6, 24)
    expected = attention_reference(qkv_ND, sequence_N, 2)
    torch.testing.assert_close(attend_ragged(qkv_ND, ragged(sequence_N, 6), 2), expected)
    assert attend_ragged(qkv_ND[:0], ragged(sequence_N[:0], 6), 2).shape == (0, 8)
    spans = (Span(0, 2, 2), Span(4, 0, 3), Span(4, 1, 2))
    expected = attention_reference(qkv_ND, torch.tensor([0, 0, 1, 1, 2, 2]), 2)
    torch.testing.assert_close(attend_spans(qkv_ND, spans, 2), expected)


def test_pairs_of_different_lengths_attend_within_themselves() -> None:
    """One of twelve tokens beside ones of nine, one and two, behind a rectangle of three pairs."""
    torch.manual_seed(0)
    count_P = torch.tensor([9, 1, 12, 2, 9])
    pair_N = torch.repeat_interleave(count_P)
    within = ragged(pair_N, 5)
    spans = (Span(0, 3, 2), UnevenSpan(6, 5, 33, pair_N, count_P.cumsum(0) - count_P, within))
    qkv_ND = torch.randn(39, 24)
    expected = attention_reference(qkv_ND, torch.cat([torch.arange(3).repeat_interleave(2), 3 + pair_N]), 2)
    torch.testing.assert_close(attend_spans(qkv_ND, spans, 2), expected)
    assert [(bucket.sequences, bucket.length) for bucket in within.buckets] == [(1, 1), (1, 2), (2, 10), (1, 12)]


def test_time_attention_is_the_papers_formula(manifest: Manifest) -> None:
    """mTAND of packed events equals softmax(q k^T / sqrt(K)) x, feature by feature."""
    encoder = build(manifest).encoders["series"]
    batch = batch_of(manifest, 16)
    group: Any = batch.groups["series"]
    pair_O = torch.repeat_interleave(torch.arange(group.pairs), group.offsets.diff())
    time_O, value_O = group.times_O / 10, group.values_O
    segment_O = pair_O * encoder.widest + group.channels_O
    by_feature = Segments.of(segment_O, group.pairs * encoder.widest, ascending=True)
    got = encoder._attend(value_O, time_O, by_feature, group.pairs)
    got = got.view(group.pairs, encoder.tokens, encoder.widest, -1)
    embed: TimeEmbedding = encoder.time
    now_TK = embed(torch.arange(1, encoder.tokens + 1) / encoder.tokens)
    seen = 0
    for pair in range(group.pairs):
        for feature in range(encoder.widest):
            events = (pair_O == pair) & (group.channels_O == feature)
            if not events.any():
                assert not got[pair, :, feature].any()
                continue
            seen += 1
            for head in range(encoder.config.heads):
                query_TK = now_TK @ encoder.query[head].T
                expected = mtand_reference(query_TK, embed(time_O[events]), value_O[events])
                torch.testing.assert_close(got[pair, :, feature, head], expected, rtol=1e-4, atol=1e-5)
            assert (got[pair, :, feature, -1] == 1).all()
    assert seen > 10


def test_imputation_is_the_last_value_seen(manifest: Manifest) -> None:
    """Last value, its age, seen, mean and log count of the bin, by a loop over events."""
    encoder = build(manifest).encoders["series"]
    group: Any = batch_of(manifest, 16).groups["series"]
    pair_O = torch.repeat_interleave(torch.arange(group.pairs), group.offsets.diff())
    time_O, bins = group.times_O / 10, encoder.tokens
    got = encoder._impute(group.values_O, time_O, pair_O * encoder.widest + group.channels_O, group.pairs)
    got = got.view(group.pairs, bins, encoder.widest, -1)
    for pair in range(group.pairs):
        for feature in range(encoder.widest):
            events = ((pair_O == pair) & (group.channels_O == feature)).nonzero()[:, 0].tolist()
            for step in range(bins):
                past = [e for e in events if int(time_O[e] * bins) <= step]
                here = [e for e in events if int(time_O[e] * bins) == step]
                last = max(past, key=lambda e: (float(time_O[e]), e)) if past else None
                mean = sum(float(group.values_O[e]) for e in here) / len(here) if here else 0.0
                expected = [
                    float(group.values_O[last]) if last is not None else 0.0,
                    (step + 1) / bins - float(time_O[last]) if last is not None else 1.0,
                    float(bool(past)),
                    mean,
                    float(torch.tensor(1.0 + len(here)).log()),
                ]
                torch.testing.assert_close(got[pair, step, feature], torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_raw_units_do_not_matter(manifest: Manifest) -> None:
    """Values are standardised inside the model with the training statistics."""
    encoder = build(manifest).encoders["vector_3"]
    table = manifest.statistics["default"].modalities["age"]
    value_PF = torch.tensor([table.mean, [m + s for m, s in zip(table.mean, table.std, strict=True)]])
    scaled = encoder.scale(value_PF, torch.tensor([0, 0]))
    torch.testing.assert_close(scaled, torch.tensor([[0.0] * 3, [1.0] * 3]), atol=1e-4, rtol=0)


def test_modality_dropout_depends_on_the_record_only(manifest: Manifest) -> None:
    batch = batch_of(manifest, 16)
    dropped = drop_modalities(batch, 0.5, key=7)
    assert (dropped.present_BM & ~batch.present_BM).sum() == 0
    assert dropped.present_BM.any(1).all(), "at least one modality stays"
    assert dropped.present_BM.sum() < batch.present_BM.sum()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    moved = keyed_uniform(7, batch.index_B[order], 7)
    assert torch.equal(moved, keyed_uniform(7, batch.index_B, 7)[order])
    assert not torch.equal(keyed_uniform(8, batch.index_B, 7), keyed_uniform(7, batch.index_B, 7))
    for name, group in dropped.groups.items():
        assert dropped.present_BM[group.sample_P, group.modality_P].all(), name
        if hasattr(group, "offsets"):
            assert len(group.offsets) == group.pairs + 1


def test_keyed_uniform_is_uniform() -> None:
    draw = keyed_uniform(3, torch.arange(4000), 5)
    assert float(draw.min()) >= 0 and float(draw.max()) < 1
    assert abs(float(draw.mean()) - 0.5) < 0.01
    assert abs(float(draw.var()) - 1 / 12) < 0.003
    assert abs(float(torch.corrcoef(draw.T)[0, 1])) < 0.05
