"""The training loop. There is one; every job type that learns uses it.

A step is: take this rank's share of a global batch, agree with the other ranks on how many labels there are (and
whether anyone was asked to stop), forward, backward, step. Randomness is a function of (seed, rank, step) and data
order of (seed, epoch), so the whole state of a run is its weights, its moments and a handful of integers: a run that
is stopped anywhere continues as if it had not been.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from data_shards import Batch, Step
from data_shards.errors import REASONS, ShardError, skipped_words
from parallel import biased_routers, reduce_stats
from trainer.checkpoints.pieces import CheckpointError
from trainer.checkpoints.writer import CheckpointWriter
from trainer.evaluation.part import evaluate_part
from trainer.models.layers.hide_times import drop_stretches
from trainer.models.layers.missing import drop_modalities
from trainer.models.layers.staging import Stage, Staged
from trainer.session import Session
from trainer.tracking.tracker import Tracker
from trainer.training.early_stopping import best_metrics, best_value, ranking, record_evaluation
from trainer.training.lr_schedule import lr_factor
from trainer.training.meter import meter_of, routing_metrics, step_line
from trainer.training.node_usage import NodeUsage
from trainer.training.profiler import StepProfiler
from trainer.training.progress import Progress
from trainer.training.record_trace import RecordTrace
from trainer.training.step_loss import step_loss
from trainer.training.timetable import PACED, Timetable, steps_that_fit
from trainer.worker.collectives import sum_over_ranks
from trainer.worker.console import bar
from trainer.worker.heartbeat import doing

logger = logging.getLogger("fleximoe")

FINAL_RETRIES_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)


def mixed_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a fixed function of its parts."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class TrainingLoop:
    """Trains a session's engine until its recipe says stop.

    Args:
        describe: what a checkpoint says beside progress (config, schema, statistics, digests).
        size: metrics of the model itself, logged once, after those of the first step: MLflow's compare page draws the
            metric that a run logged first, and that should be the loss.
    """

    def __init__(
        self,
        session: Session,
        tracker: Tracker,
        writer: CheckpointWriter,
        describe: dict[str, Any],
        progress: Progress,
        size: Mapping[str, float],
    ) -> None:
        self.session, self.tracker, self.writer, self.describe = session, tracker, writer, describe
        self.config, self.engine, self.context = session.config, session.engine, session.context
        self.progress, self._size = progress, size
        self.loader = session.loader("train", shuffle=True)
        training = self.config.training
        validates = "val" in session.manifest.splits[self.config.data.split]
        self.timetable = Timetable(training, self.loader.steps_per_epoch, validates)
        self.meter = meter_of(session)
        self.profiler = StepProfiler(training.profile if session.context.rank == 0 else 0, tracker)
        self.stopped, self._starting, self._save_wanted = False, True, False
        self._started = 0.0
        self.routing_total: list[Tensor] = []
        self._biased = biased_routers(self.engine.module)
        self._step_counts: list[Tensor] = []
        self._met: set[str] = set()  # tasks that have a label in the current step, on any rank
        self._stage = Stage(self.engine.module, session.device)
        place = (self.config.run_dir, self.context.rank, self.context.world)
        # Collective, so on every rank, also where no tracker will take its figures.
        self._usage = NodeUsage(*place[1:], session.context.local_rank, session.device)
        self._trace = RecordTrace(*place, session.guard) if training.trace_records else None

    def run(self) -> Progress:
        """Train to the end, or until asked to stop (`stopped`). Collective.

        Raises:
            PeerError: another rank died or hung.
        """
        self.engine.train()
        self._started = time.perf_counter() - self.progress.seconds
        self._pace()
        # Once more: its clock starts here, not where the loop was made.
        self.meter = meter_of(self.session)
        with self.profiler:
            if self.progress.step:
                self._catch_up()
            while not self.progress.finished and not self.stopped:
                self._epoch()
        self._settle()
        return self.progress

    def _catch_up(self) -> None:
        """What the checkpoint's step still owed when the run was stopped right after it: its evaluation, its end."""
        progress = self.progress
        owed = self.timetable.evaluation_due(progress) and progress.evaluated_step < progress.step
        if owed:
            self._evaluate()
        progress.finished = self.timetable.at_the_end(progress)
        if owed:
            # The same step's checkpoint again, now with its score.
            self._save()

    def _settle(self) -> None:
        """The last checkpoint is there. If its storage is away, try for a while: everything else is done."""
        doing("the last checkpoint")
        for delay in FINAL_RETRIES_S:
            if self.writer.settle():
                return
            if self.context.rank == 0:
                logger.warning("the last checkpoint is tried again in %.0f s", delay)
            time.sleep(delay)
            self._save()
        if not self.writer.settle():
            raise CheckpointError(
                f"the last checkpoint could not be written: {self.writer.failed or 'on another rank'}"
            )

    def _epoch(self) -> None:
        progress = self.progress
        for step in self._timed(self.loader.steps(progress.epoch, progress.offset)):
            # The wish to stop was exchanged in the step, so every rank leaves after this very one.
            if self._train_step(step):
                self.stopped = True
                # At once, without an evaluation that may be due: `_catch_up` owes it.
                self._save()
                return
            if progress.step in PACED:
                self._pace()  # before it is asked what is due: this may be the last step
            due = self.timetable.evaluation_due(progress)
            if due:
                self._evaluate()
                self._pace()
            progress.finished = self.timetable.at_the_end(progress)
            # After the evaluation: a checkpoint holds the score that ranks it.
            if due or self.timetable.checkpoint_due(progress) or progress.finished or self._save_wanted:
                self._save()
            if progress.finished:
                return

    def _pace(self) -> None:
        """How long the run will be, where its recipe gives minutes. Collective."""
        minutes, progress = self.config.training.minutes, self.progress
        if minutes is None or not progress.step:
            return
        self._count_seconds()
        fits = steps_that_fit(progress.step, progress.seconds, minutes)
        self.timetable = replace(self.timetable, fits=fits)
        if self.context.rank == 0 and fits is not None:
            logger.info("training.minutes=%g: %d steps fit, %d at most", minutes, fits, self.timetable.total_steps)

    def _count_seconds(self) -> None:
        """By the first rank's clock, the same on every rank. Collective."""
        if self.config.training.minutes is not None:
            own = time.perf_counter() - self._started if self.context.rank == 0 else 0.0
            self.progress.seconds = float(sum_over_ranks(torch.tensor([own], dtype=torch.float64)))

    def _timed(self, steps: Iterator[Step]) -> Iterator[Step]:
        """Count the time that the loop waits for data."""
        while True:
            doing(f"step {self.progress.step + 1}")
            start = time.perf_counter()
            step = next(steps, None)
            self.meter.waited += time.perf_counter() - start
            if step is None:
                return
            yield step

    def _train_step(self, step: Step) -> bool:
        """One optimiser step. True if the run is to stop after it."""
        progress = self.progress
        # Dropout depends on step and rank only: a run that continues draws what it would have drawn.
        torch.manual_seed(mixed_seed(self.config.training.seed, "step", self.context.rank, progress.step))
        self.engine.set_lr_factor(lr_factor(self.config.optim, progress.step, self.timetable.total_steps))
        # On their way while the device still updates weights. Here, and not before that update, as a rank that is late
        # for its data is waited for in `_agree`, where it may be late.
        staged = [self._prepare(batch) for batch in step.micro_batches]
        batches = [own.host for own in staged]
        # Before any forward pass: losses are divided by the labels of the global step.
        counts, delivered, stop = self._agree(batches, step)
        for own in staged:
            self.meter.add_batch(own.host)
            self.engine.backward(self._loss(own.arrived(), counts))
        accepted = self.engine.step()
        if accepted:
            # After the step: biases follow the load of what was just trained on.
            for router, count_E in zip(self._biased, self._step_counts, strict=False):
                router.nudge(count_E)
        else:
            self._not_finite(batches)
        self._step_counts = []
        progress.step += 1
        if self._trace is not None:
            self._trace.write(progress.step, progress.epoch, [name for batch in batches for name in batch.names()])
        progress.samples_seen += delivered
        progress.epoch, progress.offset = step.position.epoch, step.position.offset
        # Before the step is evaluated or saved: timetable and checkpoint see the next epoch's beginning.
        if progress.offset >= self.loader.samples:
            progress.close_epoch(self.loader.samples)
        self.profiler.step()
        self.meter.end_step(delivered, accepted)
        if progress.step % self.config.training.log_every == 0 or progress.step in (1, self.timetable.total_steps):
            self._log()
        if self._starting:
            self._report_start()
        return stop

    def _report_start(self) -> None:
        self._starting = False
        self.context.start.mark("first step")
        self.tracker.log_metrics(self._size, 0)
        if self.context.rank == 0:
            self.tracker.log_metrics(self.context.start.report(self.progress.step), self.progress.step)

    def _prepare(self, batch: Batch) -> Staged:
        """What is decided of a batch is decided on the CPU, and then it is sent to the device."""
        probability = self.config.model.modality_dropout
        if probability:
            key = mixed_seed(self.config.training.seed, "modalities", self.progress.epoch)
            batch = drop_modalities(batch, probability, key)
        share = self.config.model.time_dropout
        if share:
            key = mixed_seed(self.config.training.seed, "time", self.progress.epoch)
            batch = drop_stretches(batch, self.session.schema, share, key)
        return self._stage(batch)

    def _agree(self, batches: list[Batch], step: Step) -> tuple[dict[str, float], int, bool]:
        """One exchange: labels of the global step per task (1 for none), records delivered, whether to stop.

        Of batches on the CPU and through the CPU, so no device has to be asked and none waits.

        Raises:
            ShardError: more than `data.max_skipped` records were skipped in this run, or all of this step, over all
                ranks.
        """
        own = [
            float(sum(int(self.session.losses[task.name].labelled(b.targets[task.name]).sum()) for b in batches))
            for task in self.session.tasks
        ]
        counted = [float(sum(len(batch) for batch in batches)), *(float(step.skipped.get(name, 0)) for name in REASONS)]
        wishes = [float(self.context.should_stop()), float(self.context.should_save())]
        # Labels, wishes and counts travel together: one exchange a step, not four. Whole numbers stay whole.
        shared = sum_over_ranks(torch.tensor([*own, *wishes, *counted], dtype=torch.float64)).tolist()
        *labelled, stop, save, delivered = shared[: -len(REASONS)]
        lost = shared[-len(REASONS) :]
        self._met = {task.name for task, number in zip(self.session.tasks, labelled, strict=True) if number}
        self._save_wanted = bool(save)
        gone = {name: int(n) for name, n in zip(REASONS, lost, strict=True) if n}
        # Raises on every rank or on none, as all have the same sums.
        self.progress.account(int(delivered), gone, self.config.data.max_skipped)
        if not delivered:
            raise ShardError("", f"no record of step {self.progress.step + 1} could be read: {skipped_words(gone)}")
        counts = {task.name: max(1.0, number) for task, number in zip(self.session.tasks, labelled, strict=True)}
        return counts, int(delivered), bool(stop)

    def _not_finite(self, batches: list[Batch]) -> None:
        """The engine refused a step whose gradient is not finite. All that learns is as before it; its data is read.

        Raises:
            FloatingPointError: unless such steps are to be skipped; names this rank's records of the step.
        """
        names = [name for batch in batches for name in batch.names()]
        where = f"rank {self.context.rank}: {', '.join(names)}"
        problem = f"the gradient of step {self.progress.step + 1} is not finite ({where})"
        # On every rank, for the norm is of all ranks; each says which records were its own.
        if self.config.training.on_nonfinite == "stop":
            raise FloatingPointError(f"{problem}; lower optim.lr, or look at the values of these records")
        self.progress.nonfinite_steps += 1
        logger.warning("%s; the step is skipped", problem)

    def _loss(self, batch: Batch, counts: dict[str, float]) -> Tensor:
        """Forward, and what is remembered of it."""
        output = self.engine(batch)
        # Routing is balanced over the global batch: its sums are added up over ranks before a loss is made of them.
        stats = reduce_stats(output.routing, self.session.mesh.world_group)
        total, parts = step_loss(self.session, batch, output, stats, counts, self._met)
        self.meter.add_losses(parts)
        self.meter.add_routing(stats)
        if self._biased:
            chosen = [layer.count_ME.sum(0) for layer in stats]
            # Over the micro-batches of a step, as there is one nudge a step.
            before = self._step_counts or [torch.zeros_like(count_E) for count_E in chosen]
            self._step_counts = [a + b for a, b in zip(before, chosen, strict=True)]
        return total

    def _log(self) -> None:
        routes = self.meter.tokens is not None
        # Collective, like `_usage.read` below: ranks log at the same steps, though only rank 0 writes.
        metrics, counts, tokens = self.meter.read()
        self.progress.tokens_seen += tokens
        # The loss first: MLflow's compare page draws what a run logged first.
        metrics = dict(sorted(metrics.items(), key=lambda item: item[0] != "train/loss")) | routing_metrics(counts)
        self.routing_total = counts
        # Of the step that was just made, which `progress` has counted already.
        metrics["train/lr"] = self.config.optim.lr * lr_factor(
            self.config.optim, self.progress.step - 1, self.timetable.total_steps
        )
        metrics["train/grad_norm"] = float(self.engine.grad_norm())
        metrics |= {
            "train/epoch": self.progress.epoch + self.progress.offset / max(1, self.loader.samples),
            "train/samples_seen": self.progress.samples_seen,
            "data/skipped": sum(self.progress.skipped.values()),
        }
        if routes:
            metrics["train/tokens_seen"] = self.progress.tokens_seen
        metrics |= self.loader.evenness.read() | self._usage.read()
        if self.context.rank == 0:
            line = step_line(self.progress.step, self.timetable.total_steps, self.progress.epoch, metrics)
            logger.info(line, extra=bar(self.progress.step, self.timetable.total_steps))
        self.tracker.log_metrics(metrics, self.progress.step)

    def _evaluate(self) -> None:
        """Validation metrics, logged beside the best ones so far."""
        stopping, progress = self.config.training.early_stopping, self.progress
        start = time.perf_counter()
        doing(f"the evaluation of step {progress.step}")
        with self.engine.averaged():
            metrics, _ = evaluate_part(self.session, "val")
        # Seconds of an evaluation are no seconds of training steps.
        self.meter.since += time.perf_counter() - start
        record_evaluation(stopping, progress, metrics)
        if self.context.rank == 0:
            text = " ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))
            best = f"best {stopping.metric} {best_value(stopping, progress):.4f} at {progress.best_step}"
            logger.info(f"step {progress.step} evaluation: {text} | {best}")
        self.tracker.log_metrics(metrics | best_metrics(stopping, progress), progress.step)
        if self.routing_total:
            table = [count.tolist() for count in self.routing_total]
            self.tracker.log_json(f"routing/by_step/{progress.step:08d}.json", {"step": progress.step, "layers": table})

    def _save(self) -> None:
        """Checkpoint of this very step."""
        progress = self.progress
        self._count_seconds()
        doing(f"the checkpoint of step {progress.step}")
        # A score ranks the weights that it was measured with, and no later ones.
        score = progress.score if progress.evaluated_step == progress.step else None
        ranked = (
            ranking(self.config.training.early_stopping, progress.moves) if progress.best_score is not None else None
        )
        place = {"step": progress.step, "score": score, "ranked_by": ranked, "progress": asdict(progress)}
        self.writer.save(self.engine, {**self.describe, **place})
