"""The form of a model that a graph may hold says what the model says, of every kind of modality."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from data_shards import DatasetSchema, ModalitySpec, TaskSpec
from tests.trainer.models.timed_batch import MOMENTS, SCHEMA, a_record, batch_of, build, records_of
from trainer.inference.portable.graph.export import program_of
from trainer.inference.portable.graph.model import GraphModel, NoGraphError, graph_primitives, inputs_of
from trainer.inference.portable.graph.onnx_graph import OnnxGraph, write_onnx

RECORDS = [*records_of(4), {}, {"note": [], "beat": [], "drug": [], "event": [], "lab": [], "ward": []}]
PLAIN = DatasetSchema(
    "plain",
    (
        ModalitySpec("x", "image", shape=(1, 4, 4)),
        ModalitySpec("ecg", "waveform", shape=(2,), max_length=40),
        ModalitySpec("eeg", "waveform", shape=(2,), max_length=40),
        ModalitySpec("a", "text", max_length=40),
        ModalitySpec("b", "text", max_length=40),
        ModalitySpec("v", "series", channels=("a", "b"), horizon=10.0),
        ModalitySpec("w", "series", channels=("a",), horizon=5.0),
    ),
    (TaskSpec("died", "binary"),),
)
WHOLE = {"model__series__statistics": "token", "model__scale": "quantile", "model__vector__numbers": "piecewise"}
WHOLE |= {"model__waveform__statistics": "fine_kernels"}
SHAPES = {**WHOLE, "model__series__statistics": "fine_kernels"}


def differs(schema: DatasetSchema, records: Any, moments: Any = None, **changes: Any) -> float:
    """The largest difference of a logit, of all records together and each alone."""
    model = build(schema, **{"model__text__layers": 1, **changes}).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        if not parameter.any():  # what begins at 0 would hide that it is left out
            torch.nn.init.normal_(parameter, std=0.3)
    form = GraphModel(copy.deepcopy(model), schema).eval()
    worst = 0.0
    for rows in (slice(None), *(slice(n, n + 1) for n in range(len(records)))):
        batch = batch_of(records[rows], schema, None if moments is None else moments[rows])
        with torch.no_grad(), graph_primitives():
            found = form(inputs_of(batch))
        with torch.no_grad():
            expected = model(batch).logits
        worst = max(worst, *(float((found[task] - own).abs().max()) for task, own in expected.items()))
    return worst


@pytest.mark.parametrize("attention", ["per_modality", "joint", "factorized"])
@pytest.mark.parametrize("way", ["tokens", "utde"])
def test_timed_objects(way, attention):
    changes = {"model__objects__irregularity": way, "model__codes__irregularity": way, "model__pooling": "last"}
    changes |= {"model__head__skip": "linear"}
    assert differs(SCHEMA, RECORDS, **changes, model__attention=attention) < 1e-5


def test_moments_and_no_indicators():
    assert differs(MOMENTS, RECORDS[:4], [1.0, 3.0, 9.0, 50.0], model__missing_embedding=False) < 1e-5


@pytest.mark.parametrize("changes", [{}, WHOLE, SHAPES, {"model__series__irregularity": "imputation"}])
def test_texts_signals_pictures_and_series(changes):
    records = [*records_of(3, seed=1, schema=PLAIN), *records_of(2, seed=2, schema=PLAIN, most=9), {}]
    short = {"ecg": np.zeros((0, 2), np.float32), "a": b"", "v": [], "w": [(1.0, 0, 0.5)] * 3}
    assert differs(PLAIN, [*records, short], **changes, model__waveform__tokens=3, model__text__stride=3) < 1e-5


def test_other_heads_gates_and_experts():
    changes = {"model__head__members": 3, "model__moe__gate": "laplace", "model__moe__router": "per_modality"}
    changes |= {"model__moe__gate_bias": True, "model__head__skip": "linear"}
    assert differs(PLAIN, records_of(5, seed=3, schema=PLAIN), **changes, model__moe__shared_expert_hidden=8) < 1e-5


CASES = {
    "timed": (SCHEMA, None, {"model__attention": "factorized", "model__codes__irregularity": "tokens"}),
    "moments": (MOMENTS, [1.0, 3.0, 9.0, 50.0, 2.0, 4.0, 5.0], {"model__objects__irregularity": "tokens"}),
    "plain": (
        PLAIN,
        None,
        {**SHAPES, "model__attention": "per_modality", "model__head__members": 2, "model__head__skip": "linear"},
    ),
}


@pytest.mark.long  # minutes of tracing
@pytest.mark.parametrize("case", CASES)
def test_a_graph_of_torch_and_one_of_onnx_say_the_same(case, tmp_path):
    """For any number of rows, one and none among them."""
    schema, moments, changes = CASES[case]
    model = build(schema, **{"model__text__layers": 1, **changes}).eval()
    full = [a_record(np.random.default_rng(seed), schema, 4, 0.0) for seed in range(3)]
    example = inputs_of(batch_of(full, schema, moments and moments[:3]))
    program = program_of(model, schema, example)
    write_onnx(program, list(example), list(model.heads), tmp_path / "model.onnx")
    runs = [program.module(), OnnxGraph(tmp_path / "model.onnx", list(model.heads))]
    empty = {spec.name: [] for spec in schema.modalities if spec.timed or spec.kind in ("series", "codes")}
    records = [*records_of(5, seed=4, schema=schema), {}, empty]
    for rows in (slice(None), *(slice(n, n + 1) for n in range(len(records)))):
        batch = batch_of(records[rows], schema, moments and moments[rows])
        with torch.no_grad():
            expected = model(batch).logits
            for run in runs:
                found = run(inputs_of(batch))
                for task, own in expected.items():
                    torch.testing.assert_close(torch.as_tensor(found[task]), own, rtol=0, atol=1e-5)


def test_what_cannot_be_in_a_graph_is_named():
    model = build(model__moe__granularity="sample")
    with pytest.raises(NoGraphError, match=r"experts that are chosen for more than a token \(moe.granularity\)"):
        GraphModel(model, SCHEMA)
