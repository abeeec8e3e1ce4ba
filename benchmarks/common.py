"""What the benchmarks share: made-up data, alternatives that take turns, medians, the last line.

Time is CPU time of the process unless said otherwise, so a busy machine disturbs it less. Alternatives take turns in
one process, so that whatever disturbs one disturbs the others too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_shards import Batch, DatasetSchema, ModalitySpec, SeriesGroup, TaskSpec, group_layout
from data_shards.records.distributions.sketch import PROBABILITIES
from data_shards.records.statistics import ModalityStatistics, SplitStatistics, TaskStatistics
from parallel import Engine, ParallelConfig, create_mesh, init_distributed
from trainer.config.sections import ModelConfig
from trainer.models.fusemoe.job_type import FuseMoEJob
from trainer.models.fusemoe.model import FuseMoE
from trainer.models.job_type import exempt_from_decay
from trainer.run_folder import RESULT

Step = Callable[[], Any]
Measure = Callable[[int, Callable[[Any], None]], None]  # rank, what takes the first rank's figures
CHANNELS, EVENTS = 4, 6  # of a series, and events a channel


def arguments(text: str | None) -> argparse.Namespace:
    """The usual flags, and one thread for tensor operations."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: under a minute")
    parser.add_argument("--rounds", type=int, default=None, help="how often every alternative has its turn")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return chosen


def take_turns(
    alternatives: Mapping[str, Step], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Median seconds of each alternative; the first turn of each warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for round_ in range(rounds + 1):
        for name, step in alternatives.items():
            start = clock()
            step()
            if round_:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table for people."""
    cells = [[str(column) for column in columns]]
    cells += [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        print("  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]))
    print(flush=True)


def last_line(name: str, ratios: Mapping[str, float], **more: Any) -> None:
    """The result for scripts."""
    setting = {"threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version()}
    rounded = {case: round(value, 4) for case, value in ratios.items()}
    print(json.dumps({"benchmark": name, **setting, **more, "ratios": rounded}), flush=True)


def train_alone(recipe: str, data: str, out: Path, name: str, seed: int, changes: Mapping[str, str]) -> Path:
    """The folder OUT/NAME of a run in a process of its own with one thread, which is made if it has not been finished.

    `changes`: of the recipe, key -> value. What the run says is in OUT/NAME.log. Raises CalledProcessError: it failed.
    """
    if (out / name / RESULT).exists():
        return out / name
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        **{"name": name, "data.url": data, "training.seed": str(seed), "training.storage": str(out)},
        **{"tracking.mlflow": "false", "parallel.workers": "1", "parallel.expert_parallel": "1"},
        **changes,
    }
    command = [sys.executable, "-m", "trainer", recipe, *(f"{key}={value}" for key, value in settings.items())]
    with (out / f"{name}.log").open("w", encoding="utf-8") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return out / name


def series_schema(modalities: int, channels: int = CHANNELS) -> DatasetSchema:
    """So many series, one binary task."""
    names = tuple(f"c{i}" for i in range(channels))
    specs = tuple(ModalitySpec(f"m{i}", "series", channels=names, horizon=1.0) for i in range(modalities))
    return DatasetSchema("made-up", specs, (TaskSpec("label", "binary"),))


def plain_statistics(schema: DatasetSchema) -> SplitStatistics:
    """Mean 0 and deviation 1 of everything, and the quantiles of normal scores."""
    modalities = {}
    normal = tuple(statistics.NormalDist().inv_cdf(min(max(p, 0.0005), 0.9995)) for p in PROBABILITIES)
    for spec in schema.modalities:
        zeros, ones = (0.0,) * spec.width, (1.0,) * spec.width
        table = ((1,) * spec.width, zeros, ones, zeros, ones, (normal,) * spec.width)
        modalities[spec.name] = ModalityStatistics(1, *table)
    return SplitStatistics(1, modalities, {t.name: TaskStatistics(1, (), (0.0,), (1.0,)) for t in schema.tasks})


def random_batch(schema: DatasetSchema, present_BM: torch.Tensor, seed: int = 0) -> Batch:
    """Series of `EVENTS` events a channel for every present pair."""
    generator = torch.Generator().manual_seed(seed)
    modality_P, sample_P = present_BM.T.nonzero(as_tuple=True)
    channels = schema.modalities[0].width
    each = channels * EVENTS
    times_PCE = torch.rand(len(modality_P), channels, EVENTS, generator=generator).sort(dim=2).values
    channels_O = torch.arange(channels).repeat_interleave(EVENTS).repeat(len(modality_P))
    values_O = torch.randn(len(modality_P) * each, generator=generator)
    offsets = torch.arange(len(modality_P) + 1) * each
    group = SeriesGroup(modality_P, sample_P, offsets, times_PCE.flatten(), channels_O, values_O)
    assert list(group_layout(schema)) == ["series"]
    records = len(present_BM)
    targets = {task.name: torch.randint(0, 2, (records, 1), generator=generator).float() for task in schema.tasks}
    keys = [f"r{i}" for i in range(records)]
    return Batch(keys, torch.arange(records), present_BM, targets, {"series": group})


def presence(records: int, modalities: int, present: int, seed: int = 0) -> torch.Tensor:
    """(B, M) bool: exactly `present` modalities of every record, each as often as any other up to chance."""
    order_BM = torch.rand(records, modalities, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    return torch.zeros(records, modalities, dtype=torch.bool).scatter(1, order_BM[:, :present], True)


def build_model(schema: DatasetSchema, config: ModelConfig) -> tuple[FuseMoE, Engine]:
    """The model that training uses in the engine that training uses, alone in the world."""
    init_distributed("cpu")
    mesh = create_mesh(ParallelConfig(), config.moe)
    torch.manual_seed(0)
    model = FuseMoE(schema, list(schema.task_names), plain_statistics(schema), config, mesh.dispatcher(), 0)
    no_decay = partial(exempt_from_decay, FuseMoEJob.no_decay)
    engine = Engine(model, mesh, lr=1e-4, weight_decay=0.01, no_decay=no_decay, clip=1.0)
    engine.train()
    return model, engine


def engine_step(engine: Engine, batch: Batch) -> Step:
    """Forward, backward, clipping and update."""

    def step() -> None:
        output = engine(batch)
        engine.backward(sum(logits.square().mean() for logits in output.logits.values()))  # type: ignore[arg-type]
        engine.step()

    return step


def model_step(model: FuseMoE, batch: Batch) -> Step:
    """Forward and backward without engine and update."""

    def step() -> None:
        model.zero_grad(set_to_none=True)
        sum(logits.square().mean() for logits in model(batch).logits.values()).backward()  # type: ignore[union-attr]

    return step


def on_ranks(world: int, measure: Measure) -> Any:
    """What the first of some processes, ranks of one world over gloo on this machine, hands over.

    Args:
        measure: can be pickled. Ranks have met when it is called, and it hands over what can be pickled.

    Raises:
        SystemExit: a rank failed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    ranks = [context.Process(target=_rank, args=(rank, world, port, measure, results)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        raise SystemExit(f"a rank failed: exit codes {[process.exitcode for process in ranks]}")
    return results.get()


def _rank(rank: int, world: int, port: int, measure: Measure, results: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo", LOCAL_RANK=str(rank))
    init_distributed("cpu", rank=rank, world=world)
    measure(rank, results.put)
    dist.barrier()
