"""Does the cost of a step follow the tokens that are present, whatever is declared?

    python -m benchmarks.flatness [--quick]

experts     the same tokens and k, with 8 and with more experts
modalities  the same number of present pairs and tokens, with 4 and with more declared modalities
absent      modalities that are declared and absent everywhere: added time over the step without them, for each one
declared    the same waveforms, declared as long as they are and 2,500 times as long
timed       one object of each kind in each record, without a time and with one
crowded     100 objects of each kind in one record of a thousand, and as many spread over the records
absent-timed  timed modalities that are declared and absent everywhere, as `absent`
declared-codes  the same codes present, of vocabularies of 10 and of a million

A step is a whole one (forward, backward, clipping, AdamW on every parameter), in the engine that training uses; `model`
is forward and backward alone. Ratios are times over the first of each kind; `absent` is the increase for one modality.
"""

from __future__ import annotations

import torch

from benchmarks import flat_objects
from benchmarks.common import (
    arguments,
    build_model,
    engine_step,
    last_line,
    model_step,
    presence,
    random_batch,
    series_schema,
    table,
    take_turns,
)  # fmt: skip
from data_shards import Batch, DatasetSchema, ModalitySpec, TaskSpec, WaveformGroup
from parallel import MoEConfig
from trainer.config.sections import ModelConfig, SeriesEncoderConfig


def config(dim: int, experts: int, router: str = "joint", missing: bool = False) -> ModelConfig:
    """A model of one block with factorized attention; experts are four times as wide as tokens, as is the default."""
    moe = MoEConfig(experts=experts, top_k=2, router=router)  # type: ignore[arg-type]
    series = SeriesEncoderConfig(irregularity="imputation")
    return ModelConfig(
        dim=dim, layers=1, bins=16, attention="factorized", missing_embedding=missing, moe=moe, series=series
    )


def experts(records: int, dim: int, numbers: list[int], rounds: int) -> tuple[dict[str, float], list[list[object]]]:
    """Time over the number of experts."""
    schema = series_schema(4)
    batch = random_batch(schema, presence(records, 4, 4))
    models = {number: build_model(schema, config(dim, number)) for number in numbers}
    whole = take_turns({str(n): engine_step(engine, batch) for n, (_, engine) in models.items()}, rounds)
    alone = take_turns({str(n): model_step(model, batch) for n, (model, _) in models.items()}, rounds)
    return _compare("experts", whole, alone)


def modalities(
    records: int, dim: int, numbers: list[int], rounds: int, router: str, missing: bool
) -> tuple[dict[str, float], list[list[object]]]:
    """Time over the number of declared modalities, four of them present in every record."""
    whole, alone = {}, {}
    for number in numbers:
        schema = series_schema(number)
        model, engine = build_model(schema, config(dim, 16, router, missing))
        batch = random_batch(schema, presence(records, number, 4))
        whole[str(number)], alone[str(number)] = engine_step(engine, batch), model_step(model, batch)
    name = f"modalities-{router}" + ("-indicators" if missing else "")
    return _compare(name, take_turns(whole, rounds), take_turns(alone, rounds))


def absent(
    records: int, dim: int, declared: int, rounds: int, missing: bool
) -> tuple[dict[str, float], list[list[object]]]:
    """Added time for each modality that nobody has, beside eight that everybody has."""
    steps = {}
    for number in (8, 8 + declared):
        schema = series_schema(number)
        there = torch.zeros(records, number, dtype=torch.bool)
        there[:, :8] = True
        _, engine = build_model(schema, config(dim, 16, "per_modality", missing))
        steps[str(number)] = engine_step(engine, random_batch(schema, there))
    seconds = take_turns(steps, rounds)
    before, after = seconds.values()
    name = "absent" + ("-indicators" if missing else "")
    each = (after / before - 1) / declared
    return {f"{name}-each": each}, [[name, f"8 and {declared} absent", 1e3 * after, "", after / before]]


def declared(records: int, dim: int, samples: int, rounds: int) -> tuple[dict[str, float], list[list[object]]]:
    """Time over the declared length of waveforms; every other one has half of the samples."""
    lengths = torch.full((records,), samples).where(torch.arange(records) % 2 == 0, samples // 2)
    whole, alone = {}, {}
    for longest in (samples, 2500 * samples):
        waveform = ModalitySpec("signal", "waveform", shape=(1,), max_length=longest)
        schema = DatasetSchema("made-up", (waveform,), (TaskSpec("label", "binary"),))
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        rows = torch.arange(records)
        values_OC = torch.randn(int(offsets[-1]), 1, generator=torch.Generator().manual_seed(0))
        group = WaveformGroup(torch.zeros_like(rows), rows, offsets, values_OC)
        present = torch.ones(records, 1, dtype=torch.bool)
        batch = Batch([f"r{i}" for i in range(records)], rows, present, {}, {"waveform/1": group})
        model, engine = build_model(schema, config(dim, 16))
        whole[str(longest)], alone[str(longest)] = engine_step(engine, batch), model_step(model, batch)
    return _compare("declared", take_turns(whole, rounds), take_turns(alone, rounds))


def _compare(
    name: str, whole: dict[str, float], alone: dict[str, float]
) -> tuple[dict[str, float], list[list[object]]]:
    first = next(iter(whole))
    ratios = {f"{name}-{first}-{n}": whole[n] / whole[first] for n in whole if n != first}
    ratios |= {f"{name}-{first}-{n}-model": alone[n] / alone[first] for n in whole if n != first}
    return ratios, [[name, n, 1e3 * whole[n], 1e3 * alone[n], whole[n] / whole[first]] for n in whole]


def main() -> None:
    chosen = arguments(__doc__)
    quick = chosen.quick
    rounds = chosen.rounds or (3 if quick else 5)
    records, dim = (64, 64) if quick else (128, 128)
    parts = [
        experts(4 * records if quick else 8 * records, dim, [8, 64] if quick else [8, 64, 256], rounds),
        modalities(records, dim, [4, 64], rounds, "joint", False),
        modalities(records, dim, [4, 64], rounds, "per_modality", False),
        absent(records, dim, 8, 3 * rounds, False),
        declared(records, dim, 4000, rounds),
    ]
    parts += [
        flat_objects.one_object(2 * records, dim, 3 * rounds),
        flat_objects.crowded((4 if quick else 8) * records, dim, rounds),
        flat_objects.absent_timed(records, dim, (2 if quick else 3) * rounds),
        flat_objects.declared_codes(records, dim, [10, 1_000_000], rounds),
    ]
    if not quick:
        parts += [modalities(records, dim, [4, 64], rounds, "joint", True), absent(records, dim, 8, 3 * rounds, True)]
    table(("case", "number", "step ms", "model ms", "ratio"), [row for _, rows in parts for row in rows])
    ratios = {case: value for part, _ in parts for case, value in part.items()}
    last_line("flatness", ratios, dim=dim, records=records, bins=16, top_k=2, expert_hidden=4 * dim, rounds=rounds)


if __name__ == "__main__":
    main()
