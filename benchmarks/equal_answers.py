"""Whether everything that opens a model says the same of a record: `python -m benchmarks.equal_answers`.

Three data sets: the digits (8 modalities), PhysioNet 2012 (stays of its set a; with `--physionet DIR`), and one that is
made up, with texts, pictures, codes, and timed texts and pictures. On each a small model learns for one epoch. Then 200
records with every pattern of modalities, at most 64 of them (a fixed draw, the whole record always among them; with
`--each N` a record has N of them, all in turn), are predicted by `Run.predict`, by the command `predict`, by
`fleximoe.load` of the export, by MLflow's pyfunc, and by a server, in requests of 250 records. Printed is the largest
difference of any logit or value to `Run.predict`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import fleximoe
from benchmarks.served import ROOT, free_port, serving
from data_shards import Codes, DatasetSchema, ModalitySpec, Objects, Record, Series, TaskSpec, create_source
from launch.api.new_records import packed_for

LARGEST = 1e-5
PATTERNS = 64
REQUEST = 250  # records
SMALL: dict[str, Any] = {
    "model": {"dim": 16, "layers": 1, "heads": 2, "bins": 4, "moe": {"experts": 4, "top_k": 2}},
    "training": {"epochs": 1, "batch_size": 32, "log_every": 10},
}
Answers = dict[str, dict[str, np.ndarray]]  # task -> key -> logits or value


def plain(record: Record, schema: DatasetSchema) -> dict[str, Any]:
    """The plain form of a record, written without what reads it."""
    return {
        "key": record.key,
        **{name: _plain(schema.modalities[schema.numbers[name]], value) for name, value in record.values.items()},
    }


def _plain(spec: ModalitySpec, value: Any) -> Any:
    if isinstance(value, Series):
        names = [spec.channels[number] for number in value.channels_O.tolist()]
        return {"times": _numbers(value.times_O), "channels": names, "values": _numbers(value.values_O)}
    if isinstance(value, Codes):
        lists = {"codes": list(value.codes)}
        lists |= {"times": _numbers(value.times_O)} if value.times_O is not None else {}
        lists |= {"values": _numbers(value.values_O)} if value.values_O is not None else {}
        return lists if len(lists) > 1 else lists["codes"]
    if isinstance(value, Objects):
        return {"times": _numbers(value.times_N), "values": [_plain(spec, own) for own in value.values]}
    return value if isinstance(value, str) else _numbers(value)


def _numbers(array: Any) -> Any:
    """Lists; JSON has no NaN."""
    array = np.asarray(array)
    if array.dtype.kind != "f":
        return array.tolist()
    return np.where(np.isnan(array), None, array.astype(object)).tolist()


def made_up(count: int) -> tuple[list[Record], DatasetSchema]:
    """Records whose modalities say the same thing: text, picture, codes, and texts and pictures with times."""
    timed = {"timed": True, "horizon": 24.0, "max_objects": 4}
    schema = DatasetSchema(
        "made_up",
        (
            ModalitySpec("note", "text", max_length=200),
            ModalitySpec("scan", "image", shape=(1, 8, 8)),
            ModalitySpec("drugs", "codes"),
            ModalitySpec("visits", "text", max_length=200, **timed),
            ModalitySpec("films", "image", shape=(1, 8, 8), **timed),
            ModalitySpec("labs", "series", channels=("K", "Na"), horizon=24.0),
        ),
        (TaskSpec("ill", "binary"), TaskSpec("ward", "multiclass", classes=("north", "south", "west"))),
    )
    return [_made(np.random.default_rng(number), number) for number in range(count)], schema


def _made(draw: np.random.Generator, number: int) -> Record:
    ill, ward = int(draw.random() < 0.4), int(draw.integers(3))
    texts = [f"{'feels bad' if ill else 'feels well'}, day {day}, room {ward}" for day in range(4)]
    times = np.sort(draw.uniform(0, 24, 3)).astype(np.float32)
    pictures = [(draw.integers(0, 60, (1, 8, 8)) + 150 * ill).astype(np.uint8) for _ in range(4)]
    lab = Series(times, np.array([0, 1, 0], np.int16), draw.normal(3 + ill, 1, 3).astype(np.float32))
    values = {
        "note": texts[0],
        "scan": pictures[0],
        "drugs": fleximoe.Codes([f"drug{draw.integers(6)}" for _ in range(3)]),
        "visits": Objects(times, texts[1:]),
        "films": Objects(times, pictures[1:]),
        "labs": lab,
    }
    return Record(f"m{number}", values, targets={"ill": float(ill), "ward": float(ward)})


def patterns(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Every choice of modalities but none, at most `PATTERNS` of them."""
    count = len(names)
    if 2**count - 1 <= PATTERNS:
        chosen = [c for size in range(1, count + 1) for c in itertools.combinations(names, size)]
        return chosen
    draw, found = random.Random(0), {tuple(names)}
    found |= {(name,) for name in names[: PATTERNS // 2]}
    while len(found) < PATTERNS:
        found.add(tuple(name for name in names if draw.random() < 0.5) or (names[0],))
    return sorted(found)


def thinned(records: Sequence[Record], names: Sequence[str], each: int = PATTERNS) -> list[Record]:
    """Each record with `each` of the patterns, all in turn, without labels; what leaves nothing is left out."""
    made, chosen = [], patterns(names)
    for number, record in enumerate(records):
        seen = set()
        for place in range(min(each, len(chosen))):
            pattern = chosen[(number * each + place) % len(chosen)]
            kept = tuple(name for name in pattern if name in record.values)
            if kept and kept not in seen:
                seen.add(kept)
                key = f"{record.key}-{len(seen)}"
                made.append(
                    replace(record, key=key, values={n: record.values[n] for n in kept}, targets={}, group=None)
                )
    return made


def answers(table: pd.DataFrame, tasks: Sequence[TaskSpec]) -> Answers:
    """What a table of predictions says."""
    found: Answers = {}
    for task in tasks:
        column = f"{task.name}.{'value' if task.kind == 'regression' else 'logits'}"
        pairs = zip(table["key"], table[column], strict=True)
        found[task.name] = {key: np.atleast_1d(np.asarray(value, np.float64)) for key, value in pairs}
    return found


def difference(said: Answers, wanted: Answers) -> float:
    """The largest of all; infinity where one of them says nothing of a record, or no number."""
    largest = 0.0
    for task, by_key in wanted.items():
        if said[task].keys() != by_key.keys():
            return float("inf")
        gaps = [np.abs(said[task][key] - value).max() for key, value in by_key.items()]
        largest = max(largest, *gaps) if not np.isnan(gaps).any() else float("inf")
    return float(largest)


def ways(
    run: fleximoe.Run, data: str, records: list[Record], schema: DatasetSchema, uri: str, work: Path
) -> dict[str, Any]:
    """Name -> what asks for all predictions. A graph for other tools would be one more.

    Args:
        data: that it was trained on: the command is given packed data with the same vocabularies.
    """
    given = [plain(record, schema) for record in records]
    export = work / "export"
    run.export(export)
    env = os.environ | {"MLFLOW_TRACKING_URI": uri}

    def command() -> pd.DataFrame:
        out = work / "predicted.parquet"
        with packed_for(data, records, {}) as place:
            words = ["predict", run.url, "--data", place, "--out", str(out), "--overwrite"]
            subprocess.run([sys.executable, "-m", "launch", *words], cwd=ROOT, env=env, check=True, capture_output=True)
        return pd.read_parquet(out)

    def loaded() -> pd.DataFrame:
        found: pd.DataFrame = fleximoe.load(export).rows(given)
        return found

    def pyfunc() -> pd.DataFrame:
        import mlflow

        mlflow.set_tracking_uri(uri)
        model = mlflow.pyfunc.load_model(f"models:/{schema.name}/1")
        names = ["key", *schema.modality_names]
        frame = pd.DataFrame({name: [fields.get(name) for fields in given] for name in names})
        said: pd.DataFrame = model.predict(frame)
        return said

    def served() -> pd.DataFrame:
        rows: list[dict[str, Any]] = []
        with serving(f"models:/{schema.name}", free_port(), env=env) as client:
            for start in range(0, len(given), REQUEST):
                status, said = client.ask("/predict", given[start : start + REQUEST])
                assert status == 200, said
                rows += said["predictions"]
        return pd.DataFrame(rows)

    return {"command predict": command, "fleximoe.load": loaded, "MLflow pyfunc": pyfunc, "serve": served}


def compared(
    name: str, data: Any, records: list[Record], schema: DatasetSchema, work: Path, each: int = PATTERNS
) -> dict[str, float]:
    """Way -> largest difference to `Run.predict`; prints a line of each."""
    uri = f"sqlite:///{work}/mlflow.db"
    training = {**SMALL["training"], "storage": work / "runs"}
    tracking = {"uri": uri, "register_as": name}
    run = fleximoe.fit(data, **{**SMALL, "training": training, "tracking": tracking}, name=name, progress=False)
    thin = thinned(records, schema.modality_names, each)
    wanted = answers(run.predict(thin), schema.tasks)
    spread = np.concatenate([np.stack(list(own.values())).ravel() for own in wanted.values()]).std()
    print(
        f"{name}: {len(records)} records, {len(thin)} with their patterns; logits have a deviation of {spread:.3f}",
        flush=True,
    )
    found = {}
    for way, ask in ways(run, str(data), thin, schema, uri, work).items():
        started = time.perf_counter()
        found[way] = difference(answers(ask(), schema.tasks), wanted)
        mark = "" if found[way] <= LARGEST else f"  MORE THAN {LARGEST:g}"
        print(f"  {way}: {found[way]:.2e} in {time.perf_counter() - started:.0f} s{mark}", flush=True)
    return found


def data_sets(count: int, physionet: Path | None, work: Path) -> dict[str, Callable[[], Any]]:
    """Name -> (packed data, records to ask about, schema), made when asked for."""

    def packed(name: str, records: list[Record], schema: DatasetSchema) -> tuple[Any, list[Record], DatasetSchema]:
        return fleximoe.pack(records, schema=schema, out=work / name), records[:count], schema

    def of_source(name: str, **options: Any) -> Any:
        source = create_source(name, options)
        return packed(name, list(itertools.islice(source.records(), 2 * count)), source.schema)

    makers: dict[str, Callable[[], Any]] = {"digits": lambda: of_source("digits")}
    if physionet is not None:
        makers["physionet2012"] = lambda: of_source("physionet2012", path=str(physionet))
    makers["made_up"] = lambda: packed("made_up", *made_up(2 * count))
    return makers


def main() -> None:
    """Compare, print, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--each", type=int, default=PATTERNS, help="patterns of a record; all are used in turn")
    parser.add_argument("--physionet", type=Path, help="folder of the challenge's archives; default: left out")
    parser.add_argument("--only", help="one data set")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="equal-") as folder:
        makers = data_sets(chosen.records, chosen.physionet, Path(folder))
        results = {
            name: compared(name, *make(), Path(folder), chosen.each)
            for name, make in makers.items()
            if chosen.only in (None, name)
        }
    print(json.dumps({"benchmark": "equal_answers", "records": chosen.records, "largest": results}))


if __name__ == "__main__":
    main()
