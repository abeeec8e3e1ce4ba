"""Two variants on one metric: the tests, the verdict, and what may be said of all pairs in sentences.

Page, terminal and JSON take words from here only, so none of them says what another one denies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from launch.compare.tested import Kept, all_comparable
from launch.compare.variants import Variant, seed_of
from trainer.metrics.bootstrap.intervals import Difference, difference, seed_test
from trainer.metrics.main_metric import larger_is_better

LEVEL_OF_SEEDS = 0.05
MOST_NAMED = 6  # pairs of one verdict that are named in the summary

DIFFER = "differ"
ON_THESE_RECORDS = "differ on these records; more seeds would say whether it lasts"
SAME_GAP = "differ on these records, by as much for every seed"
NOT_BEYOND_SEEDS = "differ on these records, not beyond what seeds change"
SEEDS_ONLY = "differ over seeds; not tested over records"
NO_DIFFERENCE = "no difference found"
NO_DIFFERENCE_SEEDS = "no difference found over seeds; not tested over records"
NOT_TESTED = "not tested: there are no records to draw from, and fewer than two shared seeds"


@dataclass(frozen=True)
class Pair:
    """Two variants that compare. `records` is None where predictions are missing, or nothing varies over draws;
    `seeds_p` where fewer than two seeds are shared, or all of them differ by as much."""

    first: Variant
    second: Variant
    metric: str
    records: Difference | None
    seeds_p: float | None
    shared_seeds: int

    @property
    def verdict(self) -> str:
        """What may be said of the two, in words."""
        sure = self.seeds_p is not None and self.seeds_p < LEVEL_OF_SEEDS
        if self.records is None:
            if self.seeds_p is None and self.shared_seeds < 2:
                return NOT_TESTED
            same_gap = self.seeds_p is None and self.gap != 0
            return SEEDS_ONLY if sure or same_gap else NO_DIFFERENCE_SEEDS
        if not (self.records.low > 0 or self.records.high < 0):
            return NO_DIFFERENCE
        if self.seeds_p is None:
            return SAME_GAP if self.shared_seeds > 1 else ON_THESE_RECORDS
        return DIFFER if sure else NOT_BEYOND_SEEDS

    @property
    def better(self) -> tuple[str, str]:
        """Labels of the better and of the worse one, by the difference that the verdict is about."""
        value = self.records.value if self.records is not None else self.gap
        if (value > 0) == larger_is_better(self.metric):
            return self.first.label, self.second.label
        return self.second.label, self.first.label

    @property
    def gap(self) -> float:
        """Of the means, first minus second."""
        return self.first.spread(self.metric)[0] - self.second.spread(self.metric)[0]


def all_pairs(variants: Sequence[Variant], metric: str, kept: dict[str, Kept | None]) -> list[Pair]:
    """Every two variants that compare, the better one first."""
    return [
        _pair(a, b, metric)
        for number, a in enumerate(variants)
        for b in variants[number + 1 :]
        if all_comparable([*a.runs, *b.runs], kept, metric)
    ]


def _pair(first: Variant, second: Variant, metric: str) -> Pair:
    found = None
    if metric in first.draws and metric in second.draws:
        found = difference(first.draws[metric], second.draws[metric])
    own, other = _by_seed(first, metric), _by_seed(second, metric)
    shared = sorted(set(own) & set(other))
    p = seed_test([own[seed] for seed in shared], [other[seed] for seed in shared])
    return Pair(first, second, metric, found, p, len(shared))


def _by_seed(variant: Variant, metric: str) -> dict[tuple[str, ...], float]:
    """A seed that was run twice is one seed: its value is the mean."""
    values: dict[tuple[str, ...], list[float]] = {}
    for run in variant.runs:
        values.setdefault(seed_of(run), []).append(run.metrics[metric])
    return {seed: mean(own) for seed, own in values.items()}


def finding(variants: Sequence[Variant], pairs: Sequence[Pair], metric: str) -> str:
    """What was found, in sentences that follow from the verdicts."""
    if len(variants) == 1:
        return f"There is one variant, {variants[0].label}, with {metric} {_value(variants[0], metric)}."
    whole = len(variants) * (len(variants) - 1) // 2
    text = "" if len(pairs) < whole else _best(variants, metric)
    if not pairs:
        return "No two variants compare, so none is better."
    if len(pairs) < whole:
        text = f"Only {len(pairs)} of {whole} pairs of variants compare, so none is best."
    named = [
        (DIFFER, "{} is better than {}."),
        (SAME_GAP, "{} is better than {} on these records, by as much for every seed."),
        (ON_THESE_RECORDS, "{} is better than {} on these records; more seeds would say whether it lasts."),
        (NOT_BEYOND_SEEDS, "{} is better than {} on these records, not beyond what seeds change."),
        (SEEDS_ONLY, "{} is better than {} over seeds; it was not tested over records."),
    ]
    for verdict, sentence in named:
        own = [pair for pair in pairs if pair.verdict == verdict]
        text += "".join(f" {sentence.format(*pair.better)}" for pair in own[:MOST_NAMED])
        if len(own) > MOST_NAMED:
            text += f" So it is with {len(own) - MOST_NAMED} more pairs."
    for verdict, word in (
        (NO_DIFFERENCE, "no difference was found"),
        (NO_DIFFERENCE_SEEDS, "no difference was found over seeds, and none was tested over records"),
        (NOT_TESTED, "nothing could be tested"),
    ):
        count = sum(pair.verdict == verdict for pair in pairs)
        if count:
            text += f" {_of_pairs(count, len(pairs))} {word}."
    return text


def _of_pairs(count: int, pairs: int) -> str:
    if pairs == 1:
        return "Between the two"
    return f"In {'all' if count == pairs else count} of {pairs} pairs"


def _best(variants: Sequence[Variant], metric: str) -> str:
    """The first one, or those that are equal to it."""
    first = variants[0].spread(metric)[0]
    equal = [variant for variant in variants if variant.spread(metric)[0] == first]
    if len(equal) > 1:
        names = ", ".join(variant.label for variant in equal[:MOST_NAMED])
        return f"{len(equal)} variants have the same {metric}, {first:.4f}: {names}."
    return f"The best mean is that of {variants[0].label}, with {metric} {_value(variants[0], metric)}."


def _value(variant: Variant, metric: str) -> str:
    middle, spread = variant.spread(metric)
    return f"{middle:.4f}" + (f" ± {spread:.4f} over {len(variant.runs)} runs" if spread is not None else "")
