"""Ragged arithmetic against loops."""

from __future__ import annotations

import pytest
import torch

from trainer.models.segments import offsets_to_ids, padding, segment_softmax, segment_sum


@pytest.mark.parametrize("rows", [0, 1, 23])
def test_padding_puts_rows_in_order_and_back(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    sequence_N = torch.randint(0, 5, (rows,), generator=generator)
    x_ND = torch.randn(rows, 3, generator=generator)
    layout = padding(sequence_N, 6)
    padded = layout.pad(x_ND)
    for sequence in range(6):
        own = x_ND[sequence_N == sequence]
        assert torch.equal(padded[sequence, : len(own)], own)
        assert not padded[sequence, len(own) :].any()
        assert layout.valid_SL[sequence].sum() == len(own)
    assert torch.equal(layout.unpad(padded), x_ND)


def test_no_sequences_at_all() -> None:
    layout = padding(torch.zeros(0, dtype=torch.int64), 0)
    assert layout.unpad(layout.pad(torch.zeros(0, 4))).shape == (0, 4)


def test_segment_softmax_is_a_softmax_per_segment() -> None:
    segment_N = torch.tensor([2, 0, 2, 2, 0])
    score_NH = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)) * 50
    weight_NH = segment_softmax(score_NH, segment_N, 4)
    for segment in (0, 2):
        rows = segment_N == segment
        torch.testing.assert_close(weight_NH[rows], score_NH[rows].softmax(0))
    assert segment_softmax(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 3).shape == (0, 2)


def test_offsets_and_sums() -> None:
    ids = offsets_to_ids(torch.tensor([0, 2, 2, 5]), 5)
    assert ids.tolist() == [0, 0, 2, 2, 2]
    assert segment_sum(torch.ones(5, 1), ids, 3)[:, 0].tolist() == [2, 0, 3]
