"""Which object or code an answer rests on: the shares are those of hiding each one by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from data_shards import DatasetSchema
from tests.trainer.models.timed_batch import MOMENTS, SCHEMA, batch_of, build, records_of, vocabulary_of
from trainer.inference import explain_objects as module
from trainer.inference.answers import answer
from trainer.inference.explain_objects import explain_objects, has_objects, object_columns

TASK = SCHEMA.task("died")
VOCABULARIES = {n: vocabulary_of(spec.codes) for n, spec in enumerate(SCHEMA.modalities) if spec.kind == "codes"}
NAMES = dict(enumerate(SCHEMA.modality_names))


def explained(records: list[dict[str, Any]], schema: DatasetSchema = SCHEMA, **batch: Any) -> tuple[Any, Any]:
    model = build(schema).eval()
    made = batch_of(records, schema, **batch)
    with torch.no_grad():
        found = explain_objects(model, made, schema, [TASK], model(made), VOCABULARIES)
    return model, object_columns(found, NAMES, len(records))


def test_shares_are_those_of_records_without_the_object() -> None:
    records = records_of(4, seed=3)
    model, columns = explained(records)
    looked = [spec.name for spec in SCHEMA.modalities if spec.has_objects or spec.kind == "codes"]
    for row, record in enumerate(records):
        change = {}
        with torch.no_grad():
            before = answer(TASK, model(batch_of([record])).logits["died"])
            for name in looked:
                spec = SCHEMA.modalities[SCHEMA.numbers[name]]
                # As packed: by time (of codes without times, by number), codes without a value last.
                key = {"codes": lambda e: tuple(np.inf if x != x else x for x in e)}.get(spec.kind, lambda e: e[0])
                entries = sorted(record.get(name, []), key=key)
                for i in range(len(entries)):
                    less = {**record, name: entries[:i] + entries[i + 1 :]}
                    change[name, i] = float((answer(TASK, model(batch_of([less])).logits["died"]) - before).abs())
        got = {(one["modality"], one["object"]): one["share"] for one in columns["died.objects"][row].as_py()}
        total = sum(change.values())
        assert got == pytest.approx({key: value / total for key, value in change.items()}, rel=0.02, abs=2e-3)
        shares = [one["share"] for one in columns["died.objects"][row].as_py()]
        assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1)


def test_each_is_named() -> None:
    record = {
        "note": [(1.0, b"first"), (4.5, "ä".encode() * 200)],
        "drug": [(2.0, 5, np.nan), (3.0, 0, np.nan)],
        "ward": [(4, np.nan)],
        "vitals": [(9.0, np.ones(3, np.float32))],
    }
    _, columns = explained([record])
    got = {(one["modality"], one["object"]): (one["time"], one["what"]) for one in columns["died.objects"][0].as_py()}
    assert got == {
        ("note", 0): (1.0, "first"),
        ("note", 1): (4.5, "ä" * 60),
        ("drug", 0): (2.0, "c5"),
        ("drug", 1): (3.0, "(unknown)"),
        ("ward", 0): (None, "c4"),
        ("vitals", 0): (9.0, None),
    }
    assert columns["objects_not_hidden"].to_pylist() == [0]


def test_times_of_a_window_count_from_the_records_zero() -> None:
    """The window of horizon 10 ends at moment 30: what stands at 4 in it was at 24; of horizon 20, at 14."""
    record = {"note": [(4.0, b"x")], "letter": [(4.0, b"y")], "ward": [(4, np.nan)]}
    _, columns = explained([record], MOMENTS, moments=[30.0])
    got = {one["modality"]: one["time"] for one in columns["died.objects"][0].as_py()}
    assert got == {"note": 24.0, "letter": 14.0, "ward": None}


def test_the_newest_are_hidden_and_the_others_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_OBJECTS", 2)
    notes = [(float(n), b"note %d" % n) for n in range(5)]
    _, columns = explained(
        [{"note": notes, "event": [(1.0, 3, np.nan)]}, {"note": notes[:1]}, {"age": np.ones(3, "f4")}]
    )
    rows = columns["died.objects"].to_pylist()
    assert {(one["modality"], one["object"], one["what"]) for one in rows[0]} == {
        ("note", 3, "note 3"),
        ("note", 4, "note 4"),
        ("event", 0, "c3"),
    }
    assert [len(row) for row in rows] == [3, 1, 0] and columns["objects_not_hidden"].to_pylist() == [3, 0, 0]


def test_data_without_objects_have_none() -> None:
    plain = [spec for spec in SCHEMA.modalities if not spec.has_objects and spec.kind != "codes"]
    assert has_objects(SCHEMA) and not has_objects(DatasetSchema("plain", tuple(plain), SCHEMA.tasks))
