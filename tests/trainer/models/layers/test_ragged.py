"""Ragged arithmetic against loops."""

from __future__ import annotations

import pytest
import torch

from trainer.models.layers.ragged import offsets_to_ids, ragged


@pytest.mark.parametrize("rows", [0, 1, 23, 300])
def test_buckets_hold_every_sequence_in_order(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    sequence_N = (torch.rand(rows, generator=generator).square() * 12).long()
    x_ND = torch.randn(rows, 3, generator=generator, dtype=torch.float64).requires_grad_()
    layout = ragged(sequence_N, 13)
    found = []
    parts = layout.arrange(x_ND).split([bucket.rows for bucket in layout.buckets]) if rows else []
    for bucket, part in zip(layout.buckets, parts, strict=True):
        padded = bucket.pad(part)
        assert padded.shape == (bucket.sequences, bucket.length, 3)
        valid_SL = torch.ones(padded.shape[:2], dtype=torch.bool) if bucket.valid_SL is None else bucket.valid_SL
        assert not padded[~valid_SL].any()
        found += [padded[s, valid_SL[s]] for s in range(bucket.sequences)]
        assert torch.equal(bucket.unpad(padded), part)
    expected = [x_ND[sequence_N == s] for s in range(13) if (sequence_N == s).any()]
    assert len(found) == len(expected)
    for own in expected:
        assert any(own.shape == other.shape and torch.equal(own, other) for other in found)
    if rows:
        restored = layout.restore(
            [bucket.unpad(bucket.pad(part)) for bucket, part in zip(layout.buckets, parts, strict=True)]
        )
        assert torch.equal(restored, x_ND)
        weight_ND = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((restored * weight_ND).sum(), x_ND)
        assert torch.equal(gradient, weight_ND)


def test_little_padding_whatever_the_longest_sequence_is() -> None:
    sequence_N = torch.repeat_interleave(torch.arange(60), torch.arange(60))
    layout = ragged(sequence_N, 60)
    cells = sum(bucket.sequences * bucket.length for bucket in layout.buckets)
    assert cells < 1.25 * len(sequence_N)
    assert len(layout.buckets) <= 20


def test_offsets() -> None:
    assert offsets_to_ids(torch.tensor([0, 2, 2, 5]), 5).tolist() == [0, 0, 2, 2, 2]
