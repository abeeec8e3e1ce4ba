"""Nothing that lies after a moment changes what is said at it: no bit of the batch, no bit of the model's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from data_shards import Batch, Codes, ModalitySpec, Objects, Record, Series
from data_shards.loading.collate import Collator
from data_shards.records.codec import encode_record
from data_shards.records.columns import cut
from data_shards.records.decoder import Decoder
from data_shards.records.record import Value
from tests.trainer.models.timed_batch import MOMENTS, an_object, build

NOW = 12.0


class Numbers:
    """A vocabulary whose codes are their numbers."""

    def ids(self, codes: Sequence[str]) -> np.ndarray:
        return np.array([int(code) for code in codes], np.int32)

    def name(self, number: int) -> str:
        return str(number)


VOCABULARIES = {spec.name: Numbers() for spec in MOMENTS.modalities if spec.kind == "codes"}


def rows_of(rng: np.random.Generator, spec: ModalitySpec, times: np.ndarray) -> Value:
    """A value of a modality with something at each of the times; of one without times just a value."""
    number = len(times)
    if spec.kind == "series":
        return Series(times, rng.integers(0, 2, number), rng.normal(size=number).astype(np.float32))
    if spec.kind == "codes":
        codes = [str(code) for code in rng.integers(0, spec.codes, number)]
        values = rng.normal(size=number).astype(np.float32) if spec.valued else None
        return Codes(codes, times if spec.timed else None, values)
    made = [an_object(rng, spec) for _ in range(number if spec.timed else 1)]
    own: list[Any] = [one.decode() for one in made] if spec.kind == "text" else made
    if spec.kind == "image":
        own = [one.astype(np.dtype(spec.dtype)) for one in own]
    return Objects(times, own) if spec.timed else own[0]


def joined(first: Value, second: Value) -> Value:
    """Both, of one modality with times."""
    if isinstance(first, Series) and isinstance(second, Series):
        return Series(*(np.concatenate(pair) for pair in zip(vars(first).values(), vars(second).values(), strict=True)))
    if isinstance(first, Codes) and isinstance(second, Codes):
        assert first.times_O is not None and second.times_O is not None
        values = None if first.values_O is None else np.concatenate([first.values_O, second.values_O])  # type: ignore[list-item]
        return Codes([*first.codes, *second.codes], np.concatenate([first.times_O, second.times_O]), values)
    assert isinstance(first, Objects) and isinstance(second, Objects)
    return Objects(np.concatenate([first.times_N, second.times_N]), [*first.values, *second.values])  # type: ignore[arg-type]


def before(rng: np.random.Generator, key: str) -> Record:
    """What is known at `NOW`: of a modality nothing, or rows at and before it, also some too old to be seen."""
    values = {}
    for spec in MOMENTS.modalities:
        if rng.random() < 0.6:
            times = np.append(rng.uniform(-20, NOW, int(rng.integers(0, 5))), [NOW]).astype(np.float32)
            values[spec.name] = rows_of(rng, spec, times)
    moments = np.array([3.0, NOW], np.float32)
    return Record(key, values, {"died": np.array([0.0, 1.0]), "days": 1.0}, moments=moments)


def later(rng: np.random.Generator, record: Record) -> Record:
    """The same with rows after `NOW`, however close, in modalities that it has, and that it has not; and moments."""
    values = dict(record.values)
    for spec in MOMENTS.modalities:
        if not spec.has_times or rng.random() < 0.3:
            continue
        times = np.append(rng.uniform(NOW + 1e-3, 40, int(rng.integers(0, 4))), [np.nextafter(np.float32(NOW), 99)])
        more = rows_of(rng, spec, times.astype(np.float32))
        values[spec.name] = joined(values[spec.name], more) if spec.name in values else more
    moments = np.array([3.0, NOW, NOW + 0.5, 30.0], np.float32)
    return replace(
        record, values=values, targets={"died": np.array([0.0, 1.0, 0.0, 0.0]), "days": 1.0}, moments=moments
    )


def batch_at_now(records: list[Record]) -> Batch:
    decoder = Decoder(MOMENTS, vocabularies=VOCABULARIES)
    columns = [decoder.columns(encode_record(record, MOMENTS, VOCABULARIES)) for record in records]
    return Collator(MOMENTS)([cut(own, MOMENTS, 1) for own in columns], np.arange(len(records)))


def same(one: Batch, other: Batch) -> bool:
    pairs = zip(one.tensors().items(), other.tensors().items(), strict=True)
    return one.keys == other.keys and all(
        a == b and x.dtype == y.dtype and x.numpy().tobytes() == y.numpy().tobytes() for (a, x), (b, y) in pairs
    )


@pytest.mark.parametrize("seed", range(12))
def test_what_comes_later_changes_no_bit_of_a_batch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    known = [before(rng, f"r{number}") for number in range(6)]
    batch = batch_at_now(known)
    assert batch.moment_B is not None and batch.moment_B.tolist() == [NOW] * 6
    for _ in range(4):
        assert same(batch, batch_at_now([later(rng, record) for record in known]))
    # The other way round: what lies at the moment itself is seen.
    spec = MOMENTS.modalities[0]
    there = [replace(own, values={**own.values, spec.name: rows_of(rng, spec, np.float32([NOW]))}) for own in known]
    assert not same(batch, batch_at_now(there))


@pytest.mark.parametrize("whole", ["none", "token"])
def test_what_comes_later_changes_no_bit_of_the_models_output(whole: str) -> None:
    rng, model = np.random.default_rng(7), build(MOMENTS, model__series__statistics=whole).eval()
    known = [before(rng, f"r{number}") for number in range(6)]
    with torch.no_grad():
        said = model(batch_at_now(known)).logits
        for _ in range(5):
            again = model(batch_at_now([later(rng, record) for record in known])).logits
            assert all(torch.equal(said[name], again[name]) for name in MOMENTS.task_names)
        moved = model(replace(batch_at_now(known), moment_B=torch.full((6,), NOW + 5))).logits
    assert not torch.equal(said["died"], moved["died"]), "the model knows the time of the moment"
