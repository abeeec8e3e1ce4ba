"""What one timed object a record costs the loader beside the same object without a time, and what an absent one costs.

    python -m benchmarks.timed_loader [--quick]

Made records, each with one text, picture, waveform, vector or group of codes (or all five), packed without and with
times, are read in shuffled order into batches of 64 by one process, in turns; processor time. `absent`: records of
vectors alone, with and without the other four declared as timed and never there.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace

import numpy as np

from benchmarks.common import Step, arguments, last_line, table, take_turns
from benchmarks.flat_objects import FEATURES, KINDS, SAMPLES, SIDE, schema_of, timed
from benchmarks.loader import Held
from data_shards import Codes, DatasetSchema, ModalitySpec, Objects, Record, StepLoader, open_manifest, pack
from data_shards.config import DataConfig

CODES = [f"c{number}" for number in range(1000)]


def value(spec: ModalitySpec, rng: np.random.Generator) -> object:
    """One object of a kind, at a time where the modality has times."""
    time_1 = rng.random(1).astype(np.float32)
    if spec.kind == "codes":
        return Codes([CODES[n] for n in rng.integers(0, 1000, 8)], rng.random(8) if spec.timed else None)
    made: dict[str, object] = {
        "text": "word " * 40,
        "image": rng.integers(0, 256, (1, SIDE, SIDE)).astype(np.uint8),
        "waveform": rng.normal(size=(SAMPLES, 1)).astype(np.float32),
        "vector": rng.normal(size=FEATURES).astype(np.float32),
    }
    return Objects(time_1, [made[spec.kind]]) if spec.timed else made[spec.kind]  # type: ignore[list-item]


def reading(folder: str, name: str, specs: tuple[ModalitySpec, ...], there: set[str], records: int) -> Step:
    """One epoch over a data set that is made of this."""
    rng = np.random.default_rng(0)
    schema: DatasetSchema = replace(schema_of(*specs), name=name)
    made = []
    for number in range(records):
        values = {spec.name: value(spec, rng) for spec in specs if spec.name in there}
        made.append(Record(f"r{number:06d}", values, {"label": float(number % 2)}, {"default": "train"}))  # type: ignore[arg-type]
    url = f"{folder}/{name}"
    pack(Held(schema, made), url, workers=1)
    loader = StepLoader(open_manifest(url), DataConfig(url=url), "train", 64, seed=0)

    def step() -> None:
        for one in loader.steps(0):
            assert one.samples

    return step


def main() -> None:
    """The command."""
    quick = arguments(__doc__).quick
    records, rounds = (300, 3) if quick else (2000, 15)
    ratios, rows = {}, []
    plain = tuple(replace(spec, vocabulary="", codes=0) if spec.kind == "codes" else spec for spec in KINDS)
    with tempfile.TemporaryDirectory() as folder:
        for name, specs in {"all": plain, **{spec.kind: (spec,) for spec in plain}}.items():
            there = {spec.name for spec in specs}
            turns = {
                "untimed": reading(folder, f"{name}-untimed", specs, there, records),
                "timed": reading(folder, f"{name}-timed", tuple(map(timed, specs)), there, records),
            }
            seconds = take_turns(turns, rounds)
            ratios[f"timed-{name}"] = seconds["timed"] / seconds["untimed"]
            rows.append([name, *(1e6 * own / records for own in seconds.values()), ratios[f"timed-{name}"]])
        vector = next(spec for spec in plain if spec.kind == "vector")
        declared = tuple(spec if spec is vector else timed(spec) for spec in plain)
        turns = {
            "alone": reading(folder, "alone", (vector,), {vector.name}, records),
            "declared": reading(folder, "declared", declared, {vector.name}, records),
        }
        seconds = take_turns(turns, rounds)
        ratios["absent-4"] = seconds["declared"] / seconds["alone"]
        rows.append(["4 absent", *(1e6 * own / records for own in seconds.values()), ratios["absent-4"]])
    table(["objects", "without, µs a record", "with, µs a record", "ratio"], rows)
    last_line("timed_loader", ratios)


if __name__ == "__main__":
    main()
