"""Packed batches against the slow, obvious way of building them; the flat buffer; empty batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_shards.loading.batch import Batch, ImageGroup, SeriesGroup, TextGroup, VectorGroup, WaveformGroup
from data_shards.loading.collate import Collator
from data_shards.records.codec import encode_record
from data_shards.records.columns import Columns
from data_shards.records.decoder import Decoder
from data_shards.records.record import Record, Series
from data_shards.records.schema import group_layout
from tests.data_shards.build import SCHEMA, make_record

RECORDS = [make_record(i) for i in range(40)]
DECODER = Decoder(SCHEMA)


def columns(records: list[Record]) -> list[Columns]:
    return [DECODER.columns(encode_record(record, SCHEMA)) for record in records]


def collate(records: list[Record]) -> Batch:
    return Collator(SCHEMA)(columns(records), np.arange(len(records)) + 100)


def slow_pairs(records: list[Record], group: str) -> list[tuple[int, int, Series | np.ndarray | str]]:
    """(modality, sample, value) of a group, sorted by modality, then sample."""
    numbers = group_layout(SCHEMA)[group]
    names = SCHEMA.modality_names
    return [(m, b, r.values[names[m]]) for m in numbers for b, r in enumerate(records) if names[m] in r.values]


@pytest.mark.parametrize("count", [1, 2, 40])
def test_every_group_is_what_the_slow_way_builds(count: int) -> None:
    records = RECORDS[:count]
    batch = collate(records)
    assert list(batch.groups) == list(group_layout(SCHEMA))
    for name, group in batch.groups.items():
        expected = slow_pairs(records, name)
        assert group.modality_P.tolist() == [m for m, _, _ in expected]
        assert group.sample_P.tolist() == [b for _, b, _ in expected]
        for p, (_, _, value) in enumerate(expected):
            check_value(group, p, value)


def check_value(group: object, p: int, value: Series | np.ndarray | str) -> None:
    if isinstance(value, Series):
        assert isinstance(group, SeriesGroup)
        cut = slice(group.offsets[p], group.offsets[p + 1])
        rows = sorted(zip(value.channels_O.tolist(), value.times_O.tolist(), value.values_O.tolist(), strict=True))
        found = zip(
            group.channels_O[cut].tolist(), group.times_O[cut].tolist(), group.values_O[cut].tolist(), strict=True
        )
        assert list(found) == rows
    elif isinstance(value, str):
        assert isinstance(group, TextGroup)
        assert bytes(group.bytes_O[group.offsets[p] : group.offsets[p + 1]].tolist()).decode() == value
    elif isinstance(group, WaveformGroup):
        assert group.values_OC[group.offsets[p] : group.offsets[p + 1]].tolist() == value.tolist()
    elif isinstance(group, ImageGroup):
        assert np.array_equal(group.values_PCHW[p].numpy(), value) and str(value.dtype) in str(group.values_PCHW.dtype)
    else:
        assert isinstance(group, VectorGroup) and np.array_equal(group.values_PF[p].numpy(), value)


def test_presence_and_targets() -> None:
    batch = collate(RECORDS)
    for b, record in enumerate(RECORDS):
        assert {SCHEMA.modality_names[m] for m in np.flatnonzero(batch.present_BM[b])} == record.values.keys()
        for task in SCHEMA.tasks:
            value = record.targets[task.name]
            expected = np.atleast_1d(np.float32(np.nan) if value is None else np.asarray(value, np.float32))
            assert np.array_equal(batch.targets[task.name][b].numpy(), expected, equal_nan=True)
    assert batch.keys == [record.key for record in RECORDS]
    assert batch.index_B.tolist() == list(range(100, 140))
    shapes = {name: tuple(target.shape) for name, target in batch.targets.items()}
    assert shapes == {"death": (40, 1), "ward": (40, 1), "codes": (40, 2), "stay": (40, 1)}


def test_types_of_every_tensor() -> None:
    kinds = {name: tensor.dtype for name, tensor in collate(RECORDS).tensors().items()}
    assert kinds["group:series:offsets"] == kinds["group:series:channels_O"] == kinds["index"] == torch.int64
    assert kinds["group:series:values_O"] == kinds["group:waveform/2:values_OC"] == torch.float32
    assert kinds["group:text:bytes_O"] == kinds["group:image/1x2x3:values_PCHW"] == torch.uint8
    assert kinds["group:image/1x2x2:values_PCHW"] == kinds["target:ward"] == torch.float32
    assert kinds["present"] == torch.bool


@pytest.mark.parametrize("records", [[], [Record("empty", {})], RECORDS[:7]])
def test_the_flat_buffer_round_trip(records: list[Record]) -> None:
    batch = collate(records)
    again = Batch.from_buffer(batch.to_buffer().clone())
    assert again.keys == batch.keys
    assert again.tensors().keys() == batch.tensors().keys()
    for name, tensor in batch.tensors().items():
        other = again.tensors()[name]
        assert other.dtype == tensor.dtype and other.shape == tensor.shape
        assert torch.equal(other.nan_to_num(-1), tensor.nan_to_num(-1))
        assert other.data_ptr() % tensor.element_size() == 0


def test_an_empty_batch_has_every_group() -> None:
    batch = collate([])
    assert len(batch) == 0 and batch.present_BM.shape == (0, 9)
    assert batch.targets["codes"].shape == (0, 2)
    assert list(batch.groups) == list(group_layout(SCHEMA))
    for group in batch.groups.values():
        assert group.pairs == 0
        if isinstance(group, SeriesGroup | TextGroup | WaveformGroup):
            assert group.offsets.tolist() == [0]
    shapes = {f.values_PF.shape[1] for f in batch.groups.values() if isinstance(f, VectorGroup)}
    assert shapes == {3, 5}


def test_absent_modalities_take_no_space() -> None:
    few, many = (collate([make_record(i, share=share) for i in range(30)]) for share in (0.05, 1.0))
    assert few.to_buffer().numel() < many.to_buffer().numel() / 3


def test_moving_to_another_device_keeps_everything() -> None:
    batch = collate(RECORDS[:5])
    assert batch.to("cpu") is batch
    moved = batch.to("meta")
    assert moved.device.type == "meta"
    assert {n: t.shape for n, t in moved.tensors().items()} == {n: t.shape for n, t in batch.tensors().items()}


def test_batches_own_their_memory() -> None:
    """Decoded columns are views of a shard; a batch must stay right when the chunk leaves memory, and be writable."""
    batch = collate(RECORDS[:3])
    for tensor in batch.tensors().values():
        tensor.zero_()


def test_a_foreign_buffer_is_refused() -> None:
    text = b'{"kind":"else"}'
    data = torch.frombuffer(bytearray(text + len(text).to_bytes(8, "little")), dtype=torch.uint8)
    with pytest.raises(ValueError, match="holds 'else'"):
        Batch.from_buffer(data)
