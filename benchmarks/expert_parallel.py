"""Two ranks with the experts spread over them against two ranks that each hold all experts.

    python -m benchmarks.expert_parallel [--quick]

Whole engine steps (forward, backward, reduction, clipping, AdamW) of the model that training uses, over gloo on this
machine; both layouts live in the same two processes and take turns, each rank with its own tokens. Wall time, since a
rank that waits uses no processor. `exchange` is the share of a step that rank 0 spends in or waiting for all-to-alls;
`overlap` is the step with a shared expert worked on while tokens travel, over the same step with it done afterwards;
`rows` is what a token sends over its top-k, as a token goes once to a rank however many of its experts are there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from benchmarks.common import (
    Step,
    arguments,
    engine_step,
    last_line,
    on_ranks,
    plain_statistics,
    presence,
    random_batch,
    series_schema,
    table,
)  # fmt: skip
from parallel import Engine, MoEConfig, ParallelConfig, create_mesh
from parallel.moe import dispatch as dispatch_module
from parallel.moe.rows import exchange as exchange_module
from trainer.config.sections import ModelConfig, SeriesEncoderConfig
from trainer.models.fusemoe.job_type import FuseMoEJob
from trainer.models.fusemoe.model import FuseMoE
from trainer.models.job_type import exempt_from_decay

WORLD = 2
NARROWEST = 64  # rows of the model, in its quick form


class Exchanges:
    """Stands in for torch.distributed where tokens are sent: the same calls, with the time they take."""

    def __init__(self) -> None:
        self.seconds, self.rows = 0.0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(dist, name)

    def all_to_all_single(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        work = dist.all_to_all_single(*args, **kwargs)
        self.seconds += time.perf_counter() - start
        # Weights of choices travel as well, as rows of a few numbers.
        if args[1].dim() == 2 and args[1].is_floating_point() and args[1].shape[1] >= NARROWEST:
            self.rows += len(args[1])
        return _Waited(work, self) if work is not None else None


class _Waited:
    def __init__(self, work: Any, owner: Exchanges) -> None:
        self._work, self._owner = work, owner

    def wait(self) -> None:
        start = time.perf_counter()
        self._work.wait()
        self._owner.seconds += time.perf_counter() - start


@contextmanager
def watched() -> Iterator[Exchanges]:
    exchanges = Exchanges()
    with ExitStack() as stack:
        for module in (dispatch_module, exchange_module):
            stack.enter_context(mock.patch.object(module, "dist", exchanges))
        yield exchanges


def build(degree: int, quick: bool, rank: int, shared: int = 0, overlap: bool = True) -> tuple[Step, int]:
    """A step of the model with this expert-parallel degree, and the tokens of a rank in it."""
    records, dim = (16, 64) if quick else (64, 128)
    moe = MoEConfig(experts=16, top_k=2, shared_expert_hidden=shared)
    series = SeriesEncoderConfig(irregularity="imputation")
    config = ModelConfig(dim=dim, layers=2, bins=16, attention="factorized", moe=moe, series=series)
    schema = series_schema(4)
    mesh = create_mesh(ParallelConfig(workers=WORLD, expert_parallel=degree), moe)
    torch.manual_seed(0)
    dispatcher = mesh.dispatcher()
    if degree > 1:
        dispatcher.overlap = overlap  # type: ignore[attr-defined]
    model = FuseMoE(schema, list(schema.task_names), plain_statistics(schema), config, dispatcher, 0)
    no_decay = partial(exempt_from_decay, FuseMoEJob.no_decay)
    engine = Engine(model, mesh, lr=1e-4, weight_decay=0.01, no_decay=no_decay, clip=1.0)
    engine.train()
    batch = random_batch(schema, presence(records, 4, 4, seed=rank), seed=rank)
    return engine_step(engine, batch), records * 4 * 16


def measure(quick: bool, rounds: int, rank: int, hand_over: Callable[[Any], None]) -> None:
    """One rank: all layouts take turns, every turn begun together."""
    layouts = {
        "EP 1": build(1, quick, rank),
        "EP 2": build(2, quick, rank),
        "EP 2, shared expert beside": build(2, quick, rank, shared=512),
        "EP 2, shared expert after": build(2, quick, rank, shared=512, overlap=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in layouts}
    share: dict[str, list[float]] = {name: [] for name in layouts}
    rows = {}
    for round_ in range(rounds + 1):
        for name, (step, tokens) in layouts.items():
            dist.barrier()
            with watched() as exchanges:
                start = time.perf_counter()
                step()
                took = time.perf_counter() - start
            if round_:  # the first warms up
                seconds[name].append(took)
                share[name].append(exchanges.seconds / took)
                rows[name] = exchanges.rows / (2 * 4 * tokens * 2)  # over K; there and back, twice; two layers
    if rank == 0:
        hand_over((seconds, share, rows))


def main() -> None:
    chosen = arguments(__doc__)
    rounds = chosen.rounds or (5 if chosen.quick else 15)
    seconds, share, rows = on_ranks(WORLD, partial(measure, chosen.quick, rounds))
    if not rows["EP 2"]:
        raise SystemExit("no row was seen on its way between ranks: the exchanges are made where nobody watches")
    base = seconds["EP 1"]
    lines = []
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, base, strict=True))
        cells = [1e3 * statistics.median(values), ratio, statistics.median(share[name]), rows[name]]
        lines.append([name, *cells])
    table(("layout", "step ms", "over EP 1", "exchange", "rows"), lines)
    beside, after = seconds["EP 2, shared expert beside"], seconds["EP 2, shared expert after"]
    ratios = {
        "ep2-over-ep1": statistics.median(a / b for a, b in zip(seconds["EP 2"], base, strict=True)),
        "overlap": statistics.median(a / b for a, b in zip(beside, after, strict=True)),
        "exchange-share": statistics.median(share["EP 2"]),
        "rows-over-top-k": rows["EP 2"],
    }
    last_line("expert_parallel", ratios, world=WORLD, backend="gloo", experts=16, top_k=2, rounds=rounds)


if __name__ == "__main__":
    main()
