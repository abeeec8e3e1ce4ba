"""Cases as rows, for a terminal and as the section of RESULTS.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from benchmarks.on_gpu import layer, step
from benchmarks.on_gpu.clock import Taken

LAYER_COLUMNS = ("layer", "T,H,I,E,K", "kind", "forward", "backward", "both", "of dense", "peak GiB", "waits")
STEP_COLUMNS = ("routing", "ms", "TFLOP/s", "MFU", "peak GiB", "waits")


def layer_row(case: layer.LayerCase, dense: float) -> list[str]:
    """TFLOP/s of forward, backward and both; share of the best dense product; waits of forward and backward."""
    head = [case.name, ",".join(map(str, case.shape)), case.kind]
    if case.failed or case.both is None or case.forward is None:
        return [*head, case.failed, *[""] * (len(LAYER_COLUMNS) - len(head) - 1)]
    rates = case.rates
    waits = _waits(case.forward), _waits(case.both)
    return [*head, *(f"{rate / 1e12:.4g}" for rate in rates), f"{rates[2] / dense:.0%}", _gib(case.both), waits[1]]


def step_row(case: step.StepCase, peak: float) -> list[str]:
    if case.failed or case.taken is None:
        return [case.name, case.failed, *[""] * (len(STEP_COLUMNS) - 2)]
    rate = case.flops / case.taken.seconds
    memory, waits = _gib(case.taken), _waits(case.taken)
    return [case.name, f"{1e3 * case.taken.seconds:.4g}", f"{rate / 1e12:.4g}", f"{rate / peak:.1%}", memory, waits]


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = "|" + "|".join("---" if i == 0 else "---:" for i in range(len(columns))) + "|"
    return "\n".join(["| " + " | ".join(columns) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)])


def where_waited(taken: Iterable[Taken | None]) -> list[str]:
    """Lines that waited in any of the cases, most often first: `trainer/x.py:12 3`."""
    most: Counter[str] = Counter()
    for case in taken:
        most |= case.waits if case else Counter()
    return [f"{place} {number}" for place, number in most.most_common()]


def _gib(taken: Taken) -> str:
    return "-" if taken.peak is None else f"{taken.peak / 2**30:.2f}"


def _waits(taken: Taken) -> str:
    """Not counted on a CPU."""
    return "-" if taken.peak is None else str(taken.waits.total())
