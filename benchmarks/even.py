"""How evenly a step's tokens are dealt to 1,024 ranks, how fast, and what it costs in reading.

    python -m benchmarks.even [--quick]

64 modalities whose tokens are lognormal (median 7, sigma 1), half of them present in a record: in each record by
itself, or with one chance for all records of a chunk (`alike`). Chunks of 64 records, windows of 16. Every step is
dealt by records and by tokens. Read: records of all chunks that ranks touch, over records that they use. Time: one
rank's, from the order's position to its record numbers (CPU).

Ratios: `fullest-...` is the fullest micro-batch over the mean, dealt by tokens; worst of the steps.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks.common import arguments, last_line, table, take_turns
from data_shards.loading.order import EpochOrder
from data_shards.loading.shares import Place, share_by_records, share_by_tokens

CHUNK, MODALITIES, WORLD = 64, 64, 1024
CASES = {"independent, 32": (32, 1, False), "alike, 32": (32, 1, True), "independent, 8": (8, 1, False)}
CASES |= {"independent, 4 x 8": (32, 4, False), "independent, 128": (128, 1, False), "alike, 128": (128, 1, True)}


def costs(records: int, alike: bool) -> np.ndarray:
    """int64 [records]: tokens of each."""
    rng = np.random.default_rng(0)
    size_M = np.maximum(1, np.rint(rng.lognormal(2, 1.0, MODALITIES))).astype(np.int64)
    found = []
    for _ in range(records // CHUNK):
        chance = rng.beta(1, 1, MODALITIES) if alike else 0.5
        found.append((rng.random((CHUNK, MODALITIES)) < chance) @ size_M)
    return np.maximum(1, np.concatenate(found))


def figures(numbers: list[np.ndarray], cost_N: np.ndarray, mean: float) -> tuple[float, float]:
    """(fullest over mean, read over used) of the micro-batches of all ranks."""
    fullest = max(int(cost_N[number_B].sum()) for number_B in numbers)
    read = sum(len(np.unique(number_B // CHUNK)) for number_B in numbers) * CHUNK
    return fullest / mean, read / sum(len(number_B) for number_B in numbers)


def main() -> None:
    chosen = arguments(__doc__)
    rows: list[list[object]] = []
    ratios: dict[str, float] = {}
    for name, (each, micro, alike) in CASES.items():
        batch, steps = WORLD * each, 1 if chosen.quick else 3
        order = EpochOrder(np.full((steps + 1) * batch // CHUNK, CHUNK), 0, 0, 16)
        cost_N, bounds = costs(order.total, alike), np.array([0, order.total])
        worst = np.zeros(4)
        for step in range(steps):
            number_N = order.numbers(step * batch + 1000, (step + 1) * batch + 1000)
            mean = float(cost_N[number_N].sum()) / (WORLD * micro)
            # Ranks deal alike, so a world of one that has all micro-batches of all ranks sees what each of them has.
            all_of_them = Place(0, 1, WORLD * micro)
            before = share_by_records(number_N, bounds, all_of_them)
            after, _ = share_by_tokens(number_N, cost_N[number_N], bounds, all_of_them)
            worst = np.maximum(worst, [*figures(before, cost_N, mean), *figures(after, cost_N, mean)])
        place = Place(5, WORLD, micro)
        seconds = take_turns(
            {
                "records": partial(_by_records, order, batch, place),
                "tokens": partial(_by_tokens, order, cost_N, batch, place),
            },
            chosen.rounds or 9,
        )
        rows.append([name, *worst[[0, 2, 1, 3]].tolist(), 1e3 * seconds["records"], 1e3 * seconds["tokens"]])
        ratios[f"fullest-{name}".replace(", ", "-").replace(" ", "")] = float(worst[2])
    table(("records a rank", "by records", "by tokens", "read", "read", "ms", "ms"), rows)
    last_line("even", ratios, ranks=WORLD)


def _by_records(order: EpochOrder, batch: int, place: Place) -> None:
    share_by_records(order.numbers(1000, 1000 + batch), np.array([0, order.total]), place)


def _by_tokens(order: EpochOrder, cost_N: np.ndarray, batch: int, place: Place) -> None:
    number_N = order.numbers(1000, 1000 + batch)
    share_by_tokens(number_N, cost_N[number_N], np.array([0, order.total]), place)


if __name__ == "__main__":
    main()
