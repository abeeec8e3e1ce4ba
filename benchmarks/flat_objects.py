"""Cases of `flatness` over timed objects and codes: one costs what one without a time does, many slow no others."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.common import Step, build_model, engine_step, model_step, random_batch, series_schema, take_turns
from data_shards import (
    Batch,
    CodesGroup,
    DatasetSchema,
    Group,
    ImageGroup,
    ModalitySpec,
    TaskSpec,
    TextGroup,
    VectorGroup,
    WaveformGroup,
    group_layout,
)  # fmt: skip
from parallel import MoEConfig
from trainer.config.sections import CodesConfig, ModelConfig, TextEncoderConfig

Ratios = tuple[dict[str, float], list[list[object]]]
TEXT, SAMPLES, SIDE, FEATURES = 200, 1000, 16, 32
KINDS = (
    ModalitySpec("note", "text", max_length=TEXT),
    ModalitySpec("scan", "image", shape=(1, SIDE, SIDE)),
    ModalitySpec("beat", "waveform", shape=(1,), max_length=SAMPLES),
    ModalitySpec("vitals", "vector", shape=(FEATURES,)),
    ModalitySpec("drug", "codes", codes=1_000, vocabulary="0" * 64),
)
CODES = 8  # of a record
SERIES = 5  # that everybody has


def schema_of(*specs: ModalitySpec) -> DatasetSchema:
    """These modalities, one binary task."""
    return DatasetSchema("made-up", specs, (TaskSpec("label", "binary"),))


def timed(spec: ModalitySpec) -> ModalitySpec:
    """The same with times."""
    return replace(spec, timed=True, horizon=1.0)


def config(dim: int, attention: str) -> ModelConfig:
    """A model of one block, without indicators."""
    moe = MoEConfig(experts=16, top_k=2, router="joint")
    # One code is one token, with a time or without.
    text, codes = TextEncoderConfig(positions=TEXT), CodesConfig(tokens=1)
    sections = {"moe": moe, "text": text, "codes": codes, "attention": attention}
    return ModelConfig(dim=dim, layers=1, bins=16, missing_embedding=False, **sections)  # type: ignore[arg-type]


def objects_batch(schema: DatasetSchema, counts_BM: torch.Tensor, there_BM: torch.Tensor) -> Batch:
    """So many objects of each modality that a record has, at random times; codes: so many each."""
    generator = torch.Generator().manual_seed(0)
    groups: dict[str, Group] = {}
    for name, numbers in group_layout(schema).items():
        modality_P, sample_P = [], []
        for number in numbers:
            rows = torch.arange(len(counts_BM))[there_BM[:, number]]
            each = counts_BM[rows, number]
            if schema.modalities[number].kind == "codes":
                each = torch.ones_like(each)
            sample_P.append(rows.repeat_interleave(each))
            modality_P.append(torch.full_like(sample_P[-1], number))
        groups[name] = _group(
            schema.modalities[numbers[0]], torch.cat(modality_P), torch.cat(sample_P), counts_BM, generator
        )
    targets = {"label": torch.randint(0, 2, (len(counts_BM), 1), generator=generator).float()}
    keys = [f"r{i}" for i in range(len(counts_BM))]
    return Batch(keys, torch.arange(len(counts_BM)), there_BM, targets, groups)


def _group(
    spec: ModalitySpec,
    modality_P: torch.Tensor,
    sample_P: torch.Tensor,
    counts_BM: torch.Tensor,
    generator: torch.Generator,
) -> Group:
    rows = len(modality_P)
    times_P = torch.rand(rows, generator=generator)
    # Times ascend within a pair.
    times_P = times_P[(sample_P + modality_P * len(counts_BM) + times_P.double()).argsort()]
    times_P = times_P if spec.timed else torch.zeros(rows)
    match spec.kind:
        case "text":
            data = torch.randint(97, 123, (rows * TEXT,), generator=generator, dtype=torch.uint8)
            return TextGroup(modality_P, sample_P, torch.arange(rows + 1) * TEXT, data, times_P)
        case "image":
            pixels = torch.randint(0, 256, (rows, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)
            return ImageGroup(modality_P, sample_P, pixels, times_P)
        case "waveform":
            values = torch.randn(rows * SAMPLES, 1, generator=generator)
            return WaveformGroup(modality_P, sample_P, torch.arange(rows + 1) * SAMPLES, values, times_P)
        case "vector":
            return VectorGroup(modality_P, sample_P, torch.randn(rows, FEATURES, generator=generator), times_P)
    counts_P = counts_BM[sample_P, modality_P]
    offsets = torch.cat([counts_P.new_zeros(1), counts_P.cumsum(0)])
    number = int(offsets[-1])
    # The same ones of any vocabulary, or its size would change how many different ones there are.
    ids = torch.randint(0, 10, (number,), generator=generator)
    ids = ids * max(1, spec.codes // 10 - 1)
    times = torch.rand(number, generator=generator).sort().values if spec.timed else torch.zeros(number)
    return CodesGroup(modality_P, sample_P, offsets, ids, times, torch.full((number,), torch.nan))


def _step(
    schema: DatasetSchema, counts_BM: torch.Tensor, there_BM: torch.Tensor, dim: int, attention: str = "factorized"
) -> tuple[Step, Step]:
    model, engine = build_model(schema, config(dim, attention))
    batch = objects_batch(schema, counts_BM, there_BM)
    return engine_step(engine, batch), model_step(model, batch)


def one_object(records: int, dim: int, rounds: int) -> Ratios:
    """Time with one object of each modality in each record, over that without times.

    Attention is joint: one over modalities within a bin sees an object's tokens in one bin, and others spread over all.
    """
    ratios, rows = {}, []
    for name, specs in {"all": KINDS, **{spec.kind: (spec,) for spec in KINDS}}.items():
        counts_BM = torch.ones(records, len(specs), dtype=torch.int64)
        there_BM = torch.ones(records, len(specs), dtype=torch.bool)
        schemas = {"untimed": schema_of(*specs), "timed": schema_of(*(timed(spec) for spec in specs))}
        steps = {key: _step(schema, counts_BM, there_BM, dim, "joint") for key, schema in schemas.items()}
        found, row = _ratio(f"timed-{name}", steps, rounds)
        ratios |= found
        rows += row
    return ratios, rows


def _ratio(name: str, steps: dict[str, tuple[Step, Step]], rounds: int) -> Ratios:
    whole = take_turns({key: engine for key, (engine, _) in steps.items()}, rounds)
    alone = take_turns({key: model for key, (_, model) in steps.items()}, rounds)
    first, last = whole
    found = {name: whole[last] / whole[first], f"{name}-model": alone[last] / alone[first]}
    rows: list[list[object]] = [
        [name, key, 1e3 * whole[key], 1e3 * alone[key], whole[key] / whole[first]] for key in whole
    ]
    return found, rows


def crowded(records: int, dim: int, rounds: int, many: int = 100) -> Ratios:
    """Time with `many` objects of each kind in one record, over that with as many spread over the records."""
    schema = schema_of(*(timed(spec) for spec in KINDS))
    there_BM = torch.ones(records, len(KINDS), dtype=torch.bool)
    spread_BM = torch.ones(records, len(KINDS), dtype=torch.int64)
    spread_BM[: many - 1] += 1
    one_BM = torch.ones(records, len(KINDS), dtype=torch.int64)
    one_BM[0] = many
    steps = {
        "spread over records": _step(schema, spread_BM, there_BM, dim),
        f"{many} in one record": _step(schema, one_BM, there_BM, dim),
    }
    return _ratio("crowded", steps, rounds)


def absent_timed(records: int, dim: int, rounds: int) -> Ratios:
    """Added time for each timed modality that nobody has, beside five series that everybody has."""
    base = series_schema(SERIES).modalities
    ratios, rows = {}, []
    for spec in KINDS:
        number = 4
        more = [replace(timed(spec), name=f"{spec.name}{i}") for i in range(number)]
        schemas = {"without": schema_of(*base), "absent": schema_of(*base, *more)}
        seconds = take_turns({key: _with_series(schema, records, dim) for key, schema in schemas.items()}, rounds)
        each = (seconds["absent"] / seconds["without"] - 1) / number
        name = f"absent-timed-{spec.kind}-each"
        ratios[name] = each
        rows.append([name, f"{number} absent", 1e3 * seconds["absent"], "", seconds["absent"] / seconds["without"]])
    return ratios, rows


def _with_series(schema: DatasetSchema, records: int, dim: int) -> Step:
    series = random_batch(series_schema(SERIES), torch.ones(records, SERIES, dtype=torch.bool))
    there_BM = torch.zeros(records, len(schema.modalities), dtype=torch.bool)
    groups = dict(series.groups)
    if more := schema.modalities[SERIES:]:
        nobody_BM = there_BM[:, SERIES:]
        groups |= objects_batch(schema_of(*more), nobody_BM.long(), nobody_BM).groups
    there_BM[:, :SERIES] = True
    _, engine = build_model(schema, config(dim, "factorized"))
    return engine_step(engine, Batch(series.keys, series.index_B, there_BM, series.targets, groups))


def declared_codes(records: int, dim: int, vocabularies: list[int], rounds: int) -> Ratios:
    """Time over the size of the vocabulary, the same number of codes present."""
    counts_BM = torch.full((records, 1), CODES)
    there_BM = torch.ones(records, 1, dtype=torch.bool)
    steps = {}
    for codes in vocabularies:
        spec = timed(replace(KINDS[-1], codes=codes))
        steps[f"{codes:,}"] = _step(schema_of(spec), counts_BM, there_BM, dim)
    return _ratio("declared-codes", steps, rounds)
