"""Does the cost of a step follow the codes that are present, whatever the vocabulary?

    python -m benchmarks.codes [--quick]

Two ranks over gloo, each with its own records of so many codes, drawn evenly from vocabularies of different sizes: the
larger one is, the more different codes a batch has. A step is a whole one (laying out, forward, backward, clipping,
AdamW) of the model that training uses, in its engine; all vocabularies live in the same two processes and take turns,
each time with other codes. Wall time, since a rank that waits uses no processor, and CPU time, which tells more on a
machine that is busy. `codes` have no times and become four tokens of a record; of `timed_codes` each is a token.
`memory` is what a rank keeps of the table over what the plan says.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.common import arguments, last_line, on_ranks, plain_statistics, table
from data_shards import Batch, CodesGroup, DatasetSchema, ModalitySpec, TaskSpec
from launch.plan.code_tables import table_sizes
from parallel import CodeTable, Engine, MoEConfig, ParallelConfig, create_mesh
from trainer.config.sections import CodesConfig, ModelConfig
from trainer.models.fusemoe.job_type import FuseMoEJob
from trainer.models.fusemoe.model import FuseMoE
from trainer.models.job_type import exempt_from_decay

WORLD = 2
CODES = 32  # of a record
Case = tuple[str, int]  # kind, vocabulary


def schema_of(kind: str, vocabulary: int) -> DatasetSchema:
    more: dict[str, Any] = {"timed": True, "horizon": 1.0} if kind == "timed_codes" else {}
    spec = ModalitySpec("drugs", "codes", codes=vocabulary, vocabulary="ab" * 32, **more)
    return DatasetSchema("made-up", (spec,), (TaskSpec("label", "binary"),))


def batch_of(kind: str, vocabulary: int, records: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(records)
    ids_O = torch.randint(0, vocabulary, (records * CODES,), generator=generator)
    times_O = torch.rand(records, CODES, generator=generator).sort(1).values.view(-1)
    nothing_O = torch.full((records * CODES,), torch.nan)
    group = CodesGroup(
        torch.zeros_like(rows), rows, torch.arange(records + 1) * CODES, ids_O, times_O * (kind != "codes"), nothing_O
    )
    present = torch.ones(records, 1, dtype=torch.bool)
    return Batch([f"r{i}" for i in range(records)], rows, present, {}, {kind: group})


def build(kind: str, vocabulary: int, quick: bool, rank: int) -> tuple[Callable[[int], None], float]:
    """A step of the model with this vocabulary, by its number, and bytes kept of its table over those planned."""
    records, dim = (64, 64) if quick else (128, 128)
    moe = MoEConfig(experts=16, top_k=2)
    config = ModelConfig(dim=dim, layers=1, bins=16, attention="factorized", moe=moe, codes=CodesConfig())
    schema = schema_of(kind, vocabulary)
    mesh = create_mesh(ParallelConfig(workers=WORLD), moe)
    torch.manual_seed(0)
    model = FuseMoE(schema, ["label"], plain_statistics(schema), config, mesh.dispatcher(), 0)
    no_decay = partial(exempt_from_decay, FuseMoEJob.no_decay)
    engine = Engine(model, mesh, lr=1e-4, weight_decay=0.01, no_decay=no_decay, clip=1.0)
    engine.train()

    def step(number: int) -> None:
        batch = batch_of(kind, vocabulary, records, seed=2 * number + rank)
        output = engine(batch)
        engine.backward(sum(logits.square().mean() for logits in output.logits.values()))  # type: ignore[arg-type]
        assert engine.step()

    return step, _over_plan(model)


def _over_plan(model: FuseMoE) -> float:
    """1 for a table that is a parameter like any other."""
    kept = 0
    for module in model.modules():
        if isinstance(module, CodeTable) and module.updates is not None:
            rows = module.updates.optimizer
            kept += sum(t.nbytes for t in (rows.weight_LD, rows.exp_avg_LD, rows.exp_avg_sq_LD, rows.place_L))
    planned = sum(size.kept(WORLD) for size in table_sizes(model))
    return kept / planned if planned else 1.0


def measure(quick: bool, rounds: int, rank: int, hand_over: Callable[[Any], None]) -> None:
    """One rank: all vocabularies take turns, every turn begun together."""
    sizes = [10, 1_000_000] if quick else [10, 1_000, 16_384, 100_000, 1_000_000]
    built = {
        (kind, size): build(kind, size, quick, rank)
        for kind in ("codes", "timed_codes")
        for size in (sizes if kind == "codes" else (10, 1_000_000))
    }
    seconds: dict[Case, list[tuple[float, float]]] = {case: [] for case in built}
    for round_ in range(rounds + 1):
        for case, (step, _) in built.items():
            dist.barrier()
            start = time.perf_counter(), time.process_time()
            step(round_)
            if round_:  # the first warms up
                seconds[case].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    if rank == 0:
        hand_over((seconds, {case: over for case, (_, over) in built.items()}))


def main() -> None:
    chosen = arguments(__doc__)
    rounds = chosen.rounds or (7 if chosen.quick else 21)
    seconds, over_plan = on_ranks(WORLD, partial(measure, chosen.quick, rounds))
    lines, ratios = [], {}
    for (kind, size), values in seconds.items():
        # Of turns that followed each other, as others use the machine, too.
        turns = list(zip(values, seconds[kind, 10], strict=True))
        wall, cpu = (statistics.median(a[clock] / b[clock] for a, b in turns) for clock in (0, 1))
        over = over_plan[kind, size]
        lines.append([kind, size, 1e3 * statistics.median(took for took, _ in values), wall, cpu, over])
        if size > 10:
            ratios |= {f"{kind}-10-{size}": wall, f"{kind}-10-{size}-cpu": cpu, f"memory-{kind}-{size}": over}
    table(("kind", "vocabulary", "step ms", "over 10", "in CPU time", "memory"), lines)
    last_line("codes", ratios, world=WORLD, backend="gloo", codes_of_a_record=CODES, rounds=rounds)


if __name__ == "__main__":
    main()
