"""The model over timed objects and codes: who sees whom, empty and absent, what every parameter learns from."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from data_shards import TaskSpec
from data_shards.loading.collate import Collator
from parallel import balance_losses
from tests.trainer.models.timed_batch import MOMENTS, SCHEMA, batch_of, build, columns_of, records_of, take
from trainer.models.layers.missing import drop_modalities, keep_modalities
from trainer.models.layers.standardise import Standardiser

WAYS = ["tokens", "mtand", "imputation", "utde"]
ATTENTION = ["per_modality", "joint", "factorized"]
RECORDS = records_of(10)


def test_the_batches_of_these_tests_are_those_of_packed_data() -> None:
    """Written down once more, by the same rules."""
    records = [record for record in RECORDS if record]
    found = Collator(SCHEMA)([columns_of(record) for record in records], np.arange(len(records)))
    expected = batch_of(records)
    assert torch.equal(found.present_BM, expected.present_BM) and list(found.groups) == list(expected.groups)
    for name, group in found.groups.items():
        for field in dataclasses.fields(group):
            got, wanted = getattr(group, field.name), getattr(expected.groups[name], field.name)
            torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True, msg=f"{name} {field.name}")


def over_time(way: str, **changes: Any) -> dict[str, Any]:
    return {"model__objects__irregularity": way, "model__codes__irregularity": way, **changes}


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("way", WAYS)
def test_no_sample_sees_another(way: str, attention: str) -> None:
    model = build(**over_time(way, model__attention=attention)).eval()
    batch = batch_of(RECORDS)
    with torch.no_grad():
        whole, again, alone = model(batch).logits, model(batch).logits, model(take(batch, 3)).logits
    for task in whole:
        assert torch.equal(whole[task], again[task])
        torch.testing.assert_close(whole[task][3], alone[task][3], rtol=0, atol=2e-6)


@pytest.mark.parametrize("way", WAYS)
def test_the_order_in_a_record_and_the_place_in_a_batch_mean_nothing(way: str) -> None:
    model = build(**over_time(way)).eval()
    shuffled = [{name: _reversed(value) for name, value in record.items()} for record in RECORDS]
    with torch.no_grad():
        plain, other = model(batch_of(RECORDS)).logits["days"], model(batch_of(shuffled)).logits["days"]
        turned = model(batch_of(RECORDS[::-1])).logits["days"]
    torch.testing.assert_close(plain, other, rtol=0, atol=2e-6)
    torch.testing.assert_close(plain, turned.flip(0), rtol=0, atol=2e-6)


def _reversed(value: Any) -> Any:
    return value[::-1] if isinstance(value, list) else value


@pytest.mark.parametrize("way", WAYS)
def test_what_stands_at_another_time_or_is_another_object_is_another_record(way: str) -> None:
    """One time, one object, one code, one value: each moves this record's answer and no other's."""
    model = build(**over_time(way)).eval()
    text, scan = b"a note of some length", np.full((1, 4, 4), 1, np.uint8)
    drugs = [(5.0, 6, np.nan)]  # of one object alone mTAND does not know when: its weight is always 1
    base = {
        "note": [(1.0, text), (8.0, b"later")],
        "scan": [(2.0, scan)],
        "drug": [(3.0, 4, 0.5), *drugs],
        "ward": [(3, np.nan)],
    }
    others = [
        {"note": [(1.2, text), (8.0, b"later")]},
        {"note": [(1.0, b"later"), (8.0, text)]},
        {"scan": [(2.0, scan + 2)]},
        {"drug": [(3.0, 5, 0.5), *drugs]},
        {"drug": [(3.0, 4, -0.5), *drugs]},
        {"drug": [(3.0, 4, np.nan), *drugs]},
        {"drug": [(3.0, 4, 0.5), (9.9, 6, np.nan)]},
        {"ward": [(2, np.nan)]},
        {"ward": [(3, np.nan), (2, np.nan)]},
    ]
    with torch.no_grad():
        answers = model(batch_of([base, *({**base, **change} for change in others)])).pooled_BX
    for row, change in enumerate(others, start=1):
        assert (answers[row] - answers[0]).abs().max() > 1e-4, change


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("way", WAYS)
def test_empty_is_not_absent(way: str, attention: str) -> None:
    """Also where absent modalities are nothing at all."""
    timed = [spec.name for spec in SCHEMA.modalities if spec.timed]
    rest = {"age": np.zeros(3, np.float32)}
    for missing in (True, False):
        model = build(**over_time(way, model__attention=attention, model__missing_embedding=missing)).eval()
        with torch.no_grad():
            answers = model(batch_of([rest, *({**rest, name: []} for name in timed)])).pooled_BX
        for row, name in enumerate(timed, start=1):
            assert (answers[row] - answers[0]).abs().max() > 1e-3, (name, missing)
        _, layout = model.embed(batch_of([{**rest, "note": []}]))
        number = 1 if way == "tokens" else 4
        assert (layout.modality_N[: layout.encoded] == 1).sum() == number


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("way", WAYS)
def test_every_parameter_learns(way: str, attention: str) -> None:
    model = build(
        MOMENTS, **over_time(way, model__attention=attention, model__moe__router="per_modality", model__layers=1)
    )
    output = model(batch_of(records_of(40, schema=MOMENTS), MOMENTS, np.linspace(-3, 40, 40).tolist()))
    loss: Any = sum(logits.square().sum() for logits in output.logits.values())
    loss = loss + sum(balance_losses(output.routing, model.config.moe).values())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("records", [[], [{}, {}], [{spec.name: [] for spec in SCHEMA.modalities[:10]}] * 2])
def test_batches_without_anything(way: str, records: list[Any]) -> None:
    model = build(**over_time(way))
    logits = model(batch_of(records)).logits
    assert all(torch.isfinite(value).all() and len(value) == len(records) for value in logits.values())
    sum(value.sum() for value in logits.values()).backward()  # type: ignore[union-attr]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_only_the_last_tokens_of_a_pair_are_read_out_last() -> None:
    """Of `last`: series in the last bin; objects that stand for themselves in the last bin that has any."""
    record = {"lab": [(1.0, 0, 1.0)], "note": [(1.0, b"x"), (2.6, b"y"), (4.0, b"z")], "drug": []}
    model = build(model__text__tokens=2, model__missing_embedding=False)
    _, layout = model.embed(batch_of([record]))
    final = {modality: layout.final_N[layout.modality_N == modality].tolist() for modality in (0, 1, 3)}
    assert final == {0: [False] * 3 + [True], 1: [False, False, True, True, True, True], 3: [True]}


def test_moments_reach_every_token() -> None:
    model = build(MOMENTS).eval()
    twice = [RECORDS[0], RECORDS[0], RECORDS[0]]
    with torch.no_grad():
        x_ND, layout = model.embed(batch_of(twice, MOMENTS, [12.0, 35.0, float("nan")]))
        answers = model(batch_of(twice, MOMENTS, [12.0, 35.0, float("nan")])).logits["died"]
        expected = model.moment.project(model.moment.time(torch.tensor(35.0 / 20).asinh()))
    early, late, none = (x_ND[layout.sample_N == sample] for sample in range(3))
    torch.testing.assert_close(late - none, expected.expand_as(late), rtol=1e-4, atol=1e-5)
    assert (early - none).abs().amax(1).min() > 1e-3 and len(set(answers[:, 0].tolist())) == 3


def test_moments_and_horizons_may_be_in_other_units() -> None:
    """Moments in days, a day of one modality in hours, three days of another: the scale is three days."""
    task = TaskSpec("died", "binary", timed=True, time_unit="days")
    note, lab = SCHEMA.modalities[1], SCHEMA.modalities[0]
    hours = dataclasses.replace(note, horizon=24.0, time_unit="hours")
    days = dataclasses.replace(lab, horizon=3.0, time_unit="days")
    assert build(dataclasses.replace(SCHEMA, modalities=(hours, days), tasks=(task,))).moment.scale == 3.0
    assert build(dataclasses.replace(SCHEMA, modalities=(hours,), tasks=(task,))).moment.scale == 1.0


def test_a_model_without_moments_asks_for_none() -> None:
    assert build().moment is None and not any("moment" in name for name, _ in build().named_parameters())


def test_modality_dropout_hides_all_objects_of_a_pair() -> None:
    batch = batch_of(RECORDS)
    for hidden in (drop_modalities(batch, 0.5, 3), keep_modalities(batch, (torch.arange(12) < 6).expand(10, -1))):
        assert 0 < hidden.present_BM.sum() < batch.present_BM.sum()
        for name, group in hidden.groups.items():
            kept_P = hidden.present_BM[batch.groups[name].sample_P, batch.groups[name].modality_P]
            assert group.pairs == int(kept_P.sum()), name
            for field in dataclasses.fields(group):
                column = field.name.rsplit("_", 1)[-1]
                if column.startswith("P"):
                    full = getattr(batch.groups[name], field.name)
                    assert torch.equal(getattr(group, field.name), full[kept_P]), (name, field.name)
    kept: Any = hidden.groups["timed_codes"]
    assert kept.ids_O.tolist() == [number for record in RECORDS for _, number, _ in record.get("drug", [])]
    assert len(build()(hidden).pooled_BX) == len(RECORDS)


def test_codes_that_are_unknown_and_rare_have_rows_of_their_own() -> None:
    """Of each modality: 0 and 1 of `drug` are rows 0 and 1 of the table, those of `event` 12 and 13."""
    model = build()
    embedding: Any = model.encoders["timed_codes"].embedding
    assert embedding.table.weight.shape[0] == 12 + 7
    records = [{"drug": [(1.0, 0, np.nan)], "event": [(1.0, 1, np.nan), (2.0, 6, np.nan), (2.0, 6, np.nan)]}]
    model(batch_of(records)).pooled_BX.square().sum().backward()
    assert embedding.table.weight.grad.abs().sum(1).nonzero()[:, 0].tolist() == [0, 13, 18]


def test_a_code_is_its_row_changed_by_its_value() -> None:
    """Values in deviations from the mean; without one there is none, which is not a value of 0 or of the mean."""
    embedding: Any = build().encoders["codes"].embedding
    embedding.scale = Standardiser([[0.0], [5.0]], [[1.0], [2.0]], clip=5.0)
    records = [{"history": [(3, 9.0), (4, np.nan)], "ward": [(2, np.nan)]}]
    group: Any = batch_of(records).groups["codes"]
    rows, _ = embedding.lay_out(group, torch.tensor([0, 1]), 2)
    table = embedding.table.weight
    expected = []
    for block, row, inputs in [(0, 2, [0.0, 0.0]), (1, 8, [2.0, 1.0]), (1, 9, [0.0, 0.0])]:
        mapped = torch.tensor(inputs) @ embedding.value.weight[block, :2] + embedding.value.bias[block]
        scale, shift = mapped.chunk(2)
        expected.append(table[row] * (1 + scale) + shift)
    torch.testing.assert_close(embedding(group, rows), torch.stack(expected))


def test_codes_without_vocabulary_and_times_without_horizon_are_refused() -> None:
    bare = dataclasses.replace(SCHEMA.modalities[8], codes=0, vocabulary="")
    with pytest.raises(ValueError, match=r"modality ward \(codes\) has no vocabulary yet: pack the data"):
        build(dataclasses.replace(SCHEMA, modalities=(bare,)))
    endless = dataclasses.replace(SCHEMA.modalities[1], horizon=None)
    with pytest.raises(ValueError, match="text note has no horizon"):
        build(dataclasses.replace(SCHEMA, modalities=(endless,)))
