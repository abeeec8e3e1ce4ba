"""Embeddings: the vector that the heads read, and the tokens of what a record has."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from launch.runs.prediction.predict import predict_into
from tests.launch.api.test_portable import records
from trainer import load_model


def test_the_pooled_vector_is_what_the_heads_answer_from(run, tmp_path):
    found, said = run.embed(records()), run.predict(records())
    run.export(tmp_path / "model")
    model = load_model(str(tmp_path / "model"))
    pooled_BX = torch.tensor(np.stack(found["embedding"]))
    with torch.no_grad():
        logits = model.heads["died"](pooled_BX)[:, 0]
    np.testing.assert_allclose(logits, said["died.logits"], atol=1e-5)


def test_tokens_are_those_of_the_modalities_that_are_there(run):
    found = run.embed(records())
    assert list(found.columns[:3]) == ["record", "key", "embedding"]
    for name in ("vitals", "numbers", "categories", "notes"):
        there = [name in key.split("-") for key in found["key"]]
        assert found[f"tokens.{name}"].notna().tolist() == there
        assert {len(vector) for own in found[f"tokens.{name}"].dropna() for vector in own} == {16}
    # Alone, a vector is one token; a series has one a bin (4) in this recipe.
    alone = found.set_index("key")
    assert len(alone.loc["numbers", "tokens.numbers"]) == 1 and len(alone.loc["vitals", "tokens.vitals"]) == 4
    # A token has seen the others: it is another one beside them.
    whole = alone.loc["vitals-numbers-categories-notes", "tokens.numbers"][0]
    assert np.abs(whole - alone.loc["numbers", "tokens.numbers"][0]).max() > 1e-4


def test_the_file_has_them_beside_the_predictions(run, tmp_path):
    predict_into(run.url, None, str(tmp_path / "e.parquet"), embeddings=True)
    found, said = pd.read_parquet(tmp_path / "e.parquet"), run.predict()
    pd.testing.assert_frame_equal(found[said.columns], said)
    own = [column for column in found.columns if column not in said.columns]
    assert own == ["embedding", *(f"tokens.{name}" for name in run.embed(records()).columns[3:].str[7:])]
