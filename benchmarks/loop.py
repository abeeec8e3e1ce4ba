"""What does the training loop cost beside the step itself?

    python -m benchmarks.loop [--quick]

bare      engine forward, task and balance losses, backward, update, on batches that are there
loop      the trainer's own step on the same batches: agreement between ranks, learning rate, seeds, meter, log lines
loading   the same with reading, decoding and packing the batches (no worker processes)

Ten steps a turn, so that one logged step is part of every turn. Ratios are times over `bare`.
"""

from __future__ import annotations

import logging
import tempfile
from itertools import cycle
from pathlib import Path

from benchmarks.common import Step, arguments, last_line, table, take_turns
from data_shards import Step as DataStep
from data_shards import create_source, open_manifest, pack
from parallel import balance_losses, reduce_stats
from trainer.checkpoints.writer import CheckpointWriter
from trainer.config.run_config import RunConfig
from trainer.session import Session, build_session
from trainer.tracking.json_lines import JsonLinesSink
from trainer.tracking.tracker import Tracker
from trainer.training.loop import TrainingLoop
from trainer.training.progress import Progress
from trainer.worker.context import SingleContext

TURN = 10


def prepare(folder: Path, records: int, dim: int, batch: int) -> tuple[Session, TrainingLoop]:
    """A real session and loop on made-up records."""
    source = create_source("synthetic", {"records": records})
    pack(source, str(folder / "data"))
    tree = {
        "name": "run",
        "data": {"url": str(folder / "data")},
        "model": {"dim": dim, "layers": 2, "bins": 12, "moe": {"experts": 16, "top_k": 2, "hidden": 2 * dim}},
        "training": {"batch_size": batch, "epochs": 10_000, "log_every": TURN, "storage": str(folder)},
        "tracking": {"mlflow": False},
    }
    config = RunConfig.model_validate(tree)
    manifest = open_manifest(config.data.url)
    context = SingleContext("cpu")
    session = build_session(config, context, manifest, manifest.schema, manifest.statistics["default"])
    session.engine.train()
    writer = CheckpointWriter(config.run_dir, 0, 1, "benchmark", 1, 1)
    tracker = Tracker(JsonLinesSink(config.run_dir))
    return session, TrainingLoop(session, tracker, writer, {}, Progress(), {})


def bare_step(session: Session, step: DataStep) -> None:
    """The arithmetic alone."""
    batch, moe = step.micro_batches[0], session.config.model.moe
    output = session.engine(batch)
    tasks = [
        session.losses[task.name](output.logits[task.name], batch.targets[task.name]) / len(batch)
        for task in session.tasks
    ]
    balance = balance_losses(reduce_stats(output.routing, session.mesh.world_group), moe)
    session.engine.backward(sum(tasks) + moe.balance * balance["balance"])  # type: ignore[arg-type]
    session.engine.step()


def loop_step(loop: TrainingLoop, step: DataStep) -> None:
    """The trainer's step; every step begins an epoch of its own, for the batches come again and again."""
    loop.progress.delivered = loop.progress.lost = 0
    loop._train_step(step)


def main() -> None:
    chosen = arguments(__doc__)
    logging.getLogger("fleximoe").setLevel(logging.ERROR)
    rounds = chosen.rounds or (3 if chosen.quick else 9)
    with tempfile.TemporaryDirectory() as name:
        session, loop = prepare(Path(name), 700 if chosen.quick else 1500, 32 if chosen.quick else 64, 64)
        full = [step for step in loop.loader.steps(0) if step.samples == 64]
        # The first epoch never ends: its last, smaller step is left out.
        there, fresh = (
            cycle(full),
            (step for epoch in range(10**6) for step in loop.loader.steps(epoch) if step.samples == 64),
        )
        alternatives: dict[str, Step] = {
            "bare": lambda: [bare_step(session, next(there)) for _ in range(TURN)],
            "loop": lambda: [loop_step(loop, next(there)) for _ in range(TURN)],
            "loading": lambda: [loop_step(loop, next(fresh)) for _ in range(TURN)],
        }
        seconds = take_turns(alternatives, rounds)
    table(("step", "ms", "over bare"), [[n, 1e3 * s / TURN, s / seconds["bare"]] for n, s in seconds.items()])
    ratios = {case: seconds[case] / seconds["bare"] for case in ("loop", "loading")}
    last_line("loop", ratios, rounds=rounds, steps_a_turn=TURN)


if __name__ == "__main__":
    main()
