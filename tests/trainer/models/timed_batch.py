"""A data set with every kind of timed modality, and batches of records that are written down.

A record is a dictionary: modality -> what it has of it. Timed: a list of (time, object), codes: of (time, number,
value); a vector or a text itself; codes without times: a list of (number, value). What it does not name it lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from data_shards import (
    Batch,
    Codes,
    CodesGroup,
    DatasetSchema,
    Group,
    ImageGroup,
    ModalitySpec,
    Objects,
    Record,
    Series,
    SeriesGroup,
    TaskSpec,
    TextGroup,
    VectorGroup,
    WaveformGroup,
    group_layout,
)  # fmt: skip
from data_shards.records.codec import encode_record
from data_shards.records.columns import Columns
from data_shards.records.decoder import Decoder
from data_shards.records.distributions.sketch import PROBABILITIES
from data_shards.records.schema import FIRST_CODE
from data_shards.records.statistics import ModalityStatistics, SplitStatistics, TaskStatistics
from data_shards.records.vocabulary import Vocabulary
from parallel import Dispatcher, LocalDispatcher
from tests.trainer.tiny import config
from trainer.models.fusemoe.model import FuseMoE
from trainer.models.layers.missing import select_pairs

Records = Sequence[dict[str, Any]]


def vocabulary_of(codes: int) -> Vocabulary:
    """So many numbers with the reserved ones; c5 is 5, rare is 1, and what is not there is 0."""
    return Vocabulary(tuple(f"c{number}" for number in range(FIRST_CODE, codes)), rare=("rare",))


def _codes(number: int) -> dict[str, Any]:
    return {"codes": number, "vocabulary": vocabulary_of(number).digest}


SCHEMA = DatasetSchema(
    "timed",
    (
        ModalitySpec("lab", "series", channels=("a", "b"), horizon=10.0),
        ModalitySpec("note", "text", timed=True, horizon=10.0, max_length=40),
        ModalitySpec("scan", "image", shape=(1, 4, 4), timed=True, horizon=10.0),
        ModalitySpec("drug", "codes", timed=True, horizon=10.0, valued=True, **_codes(12)),
        ModalitySpec("letter", "text", timed=True, horizon=20.0, max_length=40),
        ModalitySpec("vitals", "vector", shape=(3,), timed=True, horizon=10.0),
        ModalitySpec("beat", "waveform", shape=(2,), timed=True, horizon=10.0, max_length=40),
        ModalitySpec("event", "codes", timed=True, horizon=5.0, **_codes(7)),
        ModalitySpec("ward", "codes", **_codes(5)),
        ModalitySpec("history", "codes", valued=True, **_codes(9)),
        ModalitySpec("age", "vector", shape=(3,)),
        ModalitySpec("remark", "text", max_length=40),
    ),
    (TaskSpec("died", "binary"), TaskSpec("days", "regression")),
)
MOMENTS = DatasetSchema("moments", SCHEMA.modalities, (TaskSpec("died", "binary", timed=True), SCHEMA.tasks[1]))


def statistics_of(schema: DatasetSchema) -> SplitStatistics:
    """Mean 0, deviation 1 and normal quantiles of everything; texts of at most 40 bytes."""
    tables = {}
    normal = tuple(NormalDist().inv_cdf(min(max(p, 0.0005), 0.9995)) for p in PROBABILITIES)
    for spec in schema.modalities:
        zeros, ones = (0.0,) * spec.width, (1.0,) * spec.width
        longest = (40.0,) if spec.kind == "text" else ones
        tables[spec.name] = ModalityStatistics(
            1, (1,) * spec.width, zeros, ones, zeros, longest, (normal,) * spec.width
        )
    return SplitStatistics(1, tables, {task.name: TaskStatistics(1, (), (0.0,), (1.0,)) for task in schema.tasks})


def build(
    schema: DatasetSchema = SCHEMA, seed: int = 0, dispatcher: Dispatcher | None = None, **changes: Any
) -> FuseMoE:
    """The model of the data set; `changes` as `tests.trainer.tiny.config` takes them."""
    run = config("unused", "unused", **{"model__text__positions": 10, **changes})  # type: ignore[arg-type]
    torch.manual_seed(seed)
    tasks = list(schema.task_names)
    return FuseMoE(schema, tasks, statistics_of(schema), run.model, dispatcher or LocalDispatcher(), seed)


def a_record(rng: np.random.Generator, schema: DatasetSchema = SCHEMA, most: int = 3, missing: float = 0.3) -> Any:
    """0 to `most` objects of each timed modality; some modalities are missing."""
    record: dict[str, Any] = {}
    for spec in schema.modalities:
        if rng.random() < missing:
            continue
        number = int(rng.integers(0, most + 1))
        times = np.sort(rng.uniform(0, spec.horizon or 1.0, number)).astype(np.float32).tolist()
        if spec.kind == "series":
            record[spec.name] = [(time, int(rng.integers(2)), float(rng.normal())) for time in times]
        elif spec.kind == "codes":
            codes = [
                (int(rng.integers(spec.codes)), float(rng.normal()) if rng.random() < 0.5 else np.nan) for _ in times
            ]
            codes = [(number, value if spec.valued else np.nan) for number, value in codes]
            record[spec.name] = [(t, *code) for t, code in zip(times, codes, strict=True)] if spec.timed else codes
        elif spec.timed:
            record[spec.name] = [(time, an_object(rng, spec)) for time in times]
        else:
            record[spec.name] = an_object(rng, spec)
    return record


def an_object(rng: np.random.Generator, spec: ModalitySpec) -> Any:
    match spec.kind:
        case "text":
            return bytes(rng.integers(97, 123, int(rng.integers(0, 30))).tolist())
        case "waveform":
            return rng.normal(size=(int(rng.integers(0, 20)), *spec.shape)).astype(np.float32)
        case "image":
            return rng.integers(0, 256, spec.shape).astype(np.uint8)
    return rng.normal(size=spec.shape).astype(np.float32)


def records_of(number: int, seed: int = 0, schema: DatasetSchema = SCHEMA, most: int = 3) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [a_record(rng, schema, most) for _ in range(number)]


def batch_of(records: Records, schema: DatasetSchema = SCHEMA, moments: Sequence[float] | None = None) -> Batch:
    """The batch of the records, by the rules of `data_shards.loading.batch`, written down once more."""
    present = torch.tensor([[name in record for name in schema.modality_names] for record in records])
    present = present.view(len(records), len(schema.modalities)).bool()
    groups = {name: _group(records, schema, numbers) for name, numbers in group_layout(schema).items()}
    targets = {
        task.name: torch.tensor([[float(row % 2)] for row in range(len(records))]).view(-1, 1) for task in schema.tasks
    }
    moment = None if moments is None else torch.tensor(list(moments), dtype=torch.float32)
    keys = [f"r{row}" for row in range(len(records))]
    return Batch(keys, torch.arange(len(records)), present, targets, groups, None, moment)


def columns_of(record: dict[str, Any], schema: DatasetSchema = SCHEMA) -> Columns:
    """The record as packed data have it."""
    values = {name: _value(schema.modalities[schema.numbers[name]], value) for name, value in record.items()}
    vocabularies = {spec.name: vocabulary_of(spec.codes) for spec in schema.modalities if spec.kind == "codes"}
    made = Record("r", values, {"died": 1.0}, {"default": "train"})
    return Decoder(schema).columns(encode_record(made, schema, vocabularies))


def _value(spec: ModalitySpec, value: Any) -> Any:
    match spec.kind:
        case "series":
            times, channels, values = zip(*value, strict=True) if value else ((), (), ())
            return Series(np.array(times, np.float32), np.array(channels, np.int64), np.array(values, np.float32))
        case "codes":
            entries = value if spec.timed else [(0.0, *entry) for entry in value]
            names = [{0: "never seen", 1: "rare"}.get(number, f"c{number}") for _, number, _ in entries]
            times = np.array([time for time, *_ in entries], np.float32) if spec.timed else None
            return Codes(
                names, times, np.array([number for *_, number in entries], np.float32) if spec.valued else None
            )
    if not spec.timed:
        return value.decode() if spec.kind == "text" else value
    objects = [one.decode() if spec.kind == "text" else one for _, one in value]
    return Objects(np.array([time for time, _ in value], np.float32), objects)


def _group(records: Records, schema: DatasetSchema, numbers: list[int]) -> Group:
    spec = schema.modalities[numbers[0]]
    pairs = [(number, row) for number in numbers for row, record in enumerate(records)]
    found = [(n, row, records[row].get(schema.modalities[n].name)) for n, row in pairs]
    there = [one for one in found if one[2] is not None]
    if spec.kind in ("series", "codes"):
        sizes = [len(values) for _, _, values in there]
        flat = [entry for _, _, values in there for entry in _sorted(values, spec)]
        head = (_ints(n for n, _, _ in there), _ints(row for _, row, _ in there), _offsets(sizes))
        if spec.kind == "series":
            times, channels, values = zip(*flat, strict=True) if flat else ((), (), ())
            return SeriesGroup(*head, _floats(times), _ints(channels), _floats(values))
        flat = flat if spec.timed else [(0.0, *entry) for entry in flat]
        times, ids, values = zip(*flat, strict=True) if flat else ((), (), ())
        return CodesGroup(*head, _ints(ids), _floats(times), _floats(values))
    if spec.timed:
        rows = [(n, row, *entry) for n, row, values in there for entry in sorted(values, key=lambda entry: entry[0])]
    else:
        rows = [(n, row, 0.0, value) for n, row, value in there]
    head = (_ints(n for n, *_ in rows), _ints(row for _, row, *_ in rows))
    times, values = _floats(time for *_, time, _ in rows), [value for *_, value in rows]
    match spec.kind:
        case "text":
            joined = torch.tensor(list(b"".join(values)), dtype=torch.uint8)
            return TextGroup(*head, _offsets([len(value) for value in values]), joined, times)
        case "waveform":
            joined = torch.from_numpy(np.concatenate([np.zeros((0, *spec.shape), np.float32), *values]))
            return WaveformGroup(*head, _offsets([len(value) for value in values]), joined, times)
        case "image":
            stacked = torch.from_numpy(np.stack(values)) if values else torch.zeros(0, *spec.shape, dtype=torch.uint8)
            return ImageGroup(*head, stacked, times)
    return VectorGroup(*head, torch.tensor(np.array(values), dtype=torch.float32).view(-1, *spec.shape), times)


def _sorted(values: list[Any], spec: ModalitySpec) -> list[Any]:
    """Events by channel and time, codes by time, number and value, those without one last."""
    if spec.kind == "series":
        return sorted(values, key=lambda entry: (entry[1], entry[0]))
    return sorted(values, key=lambda entry: (*entry[:-1], np.inf if np.isnan(entry[-1]) else entry[-1]))


def _offsets(sizes: list[int]) -> torch.Tensor:
    return torch.tensor([0, *sizes]).cumsum(0)


def _ints(values: Any) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.int64)


def _floats(values: Any) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.float32)


def take(batch: Batch, sample: int) -> Batch:
    """The batch with all modalities of the other samples removed; rows stay where they are."""
    keep_BM = torch.zeros_like(batch.present_BM)
    keep_BM[sample] = True
    groups = {
        name: select_pairs(group, keep_BM[group.sample_P, group.modality_P]) for name, group in batch.groups.items()
    }
    return batch.changed(batch.present_BM & keep_BM, groups)
