"""Rows of an encoder are those of its modalities, whatever else stands in the batch group."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from data_shards import DatasetSchema, ModalitySpec
from tests.trainer.models.timed_batch import SCHEMA, batch_of, records_of
from trainer.models.encoder_groups import cut_group, cuts_of, encoder_layout
from trainer.models.layers.missing import select_pairs

TEXTS = replace(
    SCHEMA, modalities=(*SCHEMA.modalities, ModalitySpec("story", "text", timed=True, horizon=10.0, max_length=40))
)


def test_own_modalities_leave_their_group_and_come_last() -> None:
    layout = encoder_layout(TEXTS, {"letter", "age", "remark"})
    assert layout["timed_text"] == [1, 12] and "text" not in layout and "vector/3" not in layout
    assert list(layout)[-3:] == ["own/age", "own/letter", "own/remark"]
    assert [layout[name] for name in list(layout)[-3:]] == [[10], [4], [11]]
    with pytest.raises(ValueError, match=r"model.encoders.lettr: data set timed has no modality lettr; it has lab"):
        encoder_layout(TEXTS, {"lettr"})


@pytest.mark.parametrize("own", [{"letter"}, {"note", "story"}, {"note", "letter", "beat", "scan"}])
def test_rows_are_those_of_the_modalities(own: set[str]) -> None:
    layout = encoder_layout(TEXTS, own)
    for seed in range(4):
        batch = batch_of(records_of(6, seed, TEXTS), TEXTS)
        for name, cut in cuts_of(batch, TEXTS, layout).items():
            whole, found = batch.groups[cut.group], cut_group(batch.groups[cut.group], cut)
            keep_P = torch.isin(whole.modality_P, torch.tensor(layout[name]))
            expected = whole if bool(keep_P.all()) else select_pairs(whole, keep_P)
            for field in fields(expected):
                got, wanted = getattr(found, field.name), getattr(expected, field.name)
                same = np.array_equal(got, wanted, equal_nan=got.is_floating_point())
                assert got.dtype == wanted.dtype and same, (name, field.name)


def test_a_group_that_is_meant_as_a_whole_is_not_copied() -> None:
    batch = batch_of(records_of(6, 0, TEXTS), TEXTS)
    cuts = cuts_of(batch, TEXTS, encoder_layout(TEXTS, {"remark", "letter"}))
    assert cut_group(batch.groups["text"], cuts["own/remark"]) is batch.groups["text"]
    assert cuts["timed_text"].rows is not None and isinstance(TEXTS, DatasetSchema)
