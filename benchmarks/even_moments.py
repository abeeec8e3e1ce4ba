"""How evenly moments are dealt to 1,024 ranks by what the index knows of them, and what cutting a moment costs.

    python -m benchmarks.even_moments [--quick]

64 modalities whose tokens are lognormal (median 7, sigma 1), half of them present in a record, in a record of lognormal
length (median 40 hours) with a moment every hour; rows come more often early on. Chunks of 64 records, windows of 16.
`begun`: a modality that has begun costs its tokens, as on a grid of bins. `rows`: each row in the window of a moment
does, as objects that stand for themselves. Dealt by costs as `data_shards.loading.costs` estimates them from an index;
judged by the exact ones, and beside it how even a deal by exact costs would be. Time (CPU): a moment of a decoded
record cut out, over decoding a record of 64 series anew.

Ratios: `fullest-...` is the fullest micro-batch over the mean, in exact tokens; `cut-over-decode`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.common import arguments, last_line, series_schema, table, take_turns
from data_shards import DatasetSchema, Record, Series, TaskSpec
from data_shards.loading.order import EpochOrder
from data_shards.loading.shares import Place, share_by_tokens
from data_shards.records.codec import encode_record
from data_shards.records.columns import cut
from data_shards.records.decoder import Decoder
from data_shards.records.knots import knot_tables, knots_of, rows_until

CHUNK, MODALITIES, WORLD = 64, 64, 1024
# Rows of a present modality (mean), hours that a moment sees, records a rank.
CASES = {
    "begun, 20 rows": (20, np.inf, 32),
    "begun, 2 rows": (2, np.inf, 32),
    "rows, 5": (5, np.inf, 32),
    "rows, 5, 24 h": (5, 24.0, 32),
    "rows, 40, 24 h": (40, 24.0, 32),
    "rows, 40, 24 h, 128": (40, 24.0, 128),
}


def one_record(rng: np.random.Generator, rows: float, window: float, begun: bool, size_M: Any) -> tuple[Any, Any]:
    """(exact, estimated) tokens of each moment of one record."""
    length = float(np.clip(rng.lognormal(np.log(40), 0.8), 1, 400))
    time_K = np.arange(1, int(length) + 1.0)
    rows_M = np.where(rng.random(MODALITIES) < 0.5, 1 + rng.poisson(rows - 1, MODALITIES), 0)
    ids = np.repeat(np.arange(MODALITIES), rows_M)
    times = (length * rng.beta(0.8, 1.2, len(ids))).astype(np.float32)
    tables = knot_tables(knots_of([(ids, times)], np.ones(MODALITIES, bool)), rows_M[None])
    exact_KM, known_KM = np.zeros((2, len(time_K), MODALITIES))
    for m in np.flatnonzero(rows_M).tolist():
        own, knots_KQ = np.sort(times[ids == m]), np.repeat(tables[m], len(time_K), axis=0)
        number_K = np.full(len(time_K), rows_M[m])
        exact_KM[:, m] = np.searchsorted(own, time_K, side="right")
        known_KM[:, m] = rows_until(knots_KQ, number_K, time_K)
        if np.isfinite(window):
            exact_KM[:, m] -= np.searchsorted(own, time_K - window, side="right")
            known_KM[:, m] -= rows_until(knots_KQ, number_K, time_K - window)
    if begun:
        exact_KM, known_KM = exact_KM > 0, known_KM > 0
    return np.maximum(1, exact_KM @ size_M), np.maximum(1, np.rint(known_KM @ size_M))


def evenness(rows: float, window: float, each: int, begun: bool) -> tuple[float, float]:
    """Fullest over mean in exact tokens, dealt by estimated and by exact ones."""
    rng = np.random.default_rng(0)
    size_M = np.maximum(1, np.rint(rng.lognormal(2, 1.0, MODALITIES)))
    made: list[tuple[Any, Any]] = []
    while sum(len(exact) for exact, _ in made) < WORLD * each + 2000:
        made.append(one_record(rng, rows, window, begun, size_M))
    exact_N, known_N = (np.concatenate(column).astype(np.int64) for column in zip(*made, strict=True))
    lengths = [len(exact) for exact, _ in made]
    counts = np.array([sum(lengths[start : start + CHUNK]) for start in range(0, len(lengths), CHUNK)])
    number_N = EpochOrder(counts, 0, 0, 16).numbers(1000, 1000 + WORLD * each)
    bounds, place = np.array([0, len(exact_N)]), Place(0, 1, WORLD)
    found = []
    for cost_N in (known_N, exact_N):
        batches, _ = share_by_tokens(number_N, cost_N[number_N], bounds, place)
        found.append(max(int(exact_N[own].sum()) for own in batches) * WORLD / float(exact_N[number_N].sum()))
    return found[0], found[1]


def cutting(rounds: int) -> dict[str, float]:
    """Median seconds of a decoded record's moment, and of decoding it."""
    plain = series_schema(MODALITIES)
    schema = DatasetSchema("hourly", plain.modalities, (TaskSpec("label", "binary", timed=True),))
    rng, moments = np.random.default_rng(0), np.linspace(0.1, 1, 40).astype(np.float32)
    values = {
        spec.name: Series(np.sort(rng.random(40)).astype(np.float32), rng.integers(0, 4, 40), np.ones(40, np.float32))
        for spec in schema.modalities
    }
    decoder = Decoder(schema)
    payload = encode_record(Record("r", values, {"label": np.zeros(40)}, moments=moments), schema)
    columns = decoder.columns(payload)
    steps = {
        "cut": lambda: [cut(columns, schema, k) for k in range(40)],
        "decode": lambda: [decoder.columns(payload) for _ in range(40)],
    }
    return {name: seconds / 40 for name, seconds in take_turns(steps, rounds).items()}


def main() -> None:
    chosen = arguments(__doc__)
    cases = dict(list(CASES.items())[:2]) if chosen.quick else CASES
    result, ratios = list[list[object]](), dict[str, float]()
    for name, (rows, window, each) in cases.items():
        known, exact = evenness(rows, window, each, name.startswith("begun"))
        result.append([name, known, exact])
        ratios[f"fullest-{name}".replace(", ", "-").replace(" ", "")] = known
    table(("what costs", "by the index", "by exact costs"), result)
    seconds = cutting(chosen.rounds or 9)
    table(("of a record with 64 series", "us"), [[name, 1e6 * value] for name, value in seconds.items()])
    last_line("even_moments", ratios | {"cut-over-decode": seconds["cut"] / seconds["decode"]}, ranks=WORLD)


if __name__ == "__main__":
    main()
