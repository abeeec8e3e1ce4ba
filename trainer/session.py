"""Everything that a job works with, built once in one place: data set, mesh, model, losses, engine.

Both training and evaluation start here, so a checkpoint is evaluated by exactly the model that was trained.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from data_shards import Batch, DataSet, DatasetSchema, Step, StepLoader, TaskSpec
from data_shards.lease.lease import Guard, Unowned
from data_shards.loading.costs import complete_costs, read_costs
from data_shards.records.statistics import SplitStatistics
from parallel import Engine, Mesh, MeshSpec, create_mesh, init_distributed
from parallel.config import ParallelConfig
from parallel.moe.initial import undrawn
from trainer.config.run_config import RunConfig
from trainer.models.gpu_limits import (
    batches_at_once,
    gpu_limits,
    refuse_many_rows,
    refuse_old_gpu,
    uses_grouped_kernels,
)
from trainer.models.job_type import JobType, exempt_from_decay, job_type
from trainer.models.layers.compiled import compile_dense_parts
from trainer.models.layers.hazard import HazardLoss
from trainer.models.layers.heads import TaskLoss, target_scale
from trainer.worker.collectives import meet, rows_everywhere
from trainer.worker.context import Context
from trainer.worker.devices import peak_flops
from trainer.worker.seats import Seat, fitting_degree, gather_seats, layout_lines

logger = logging.getLogger(__name__)

LOOKED_AT, LOOKS = 256, 8  # training samples that a new model looks at before its first step, and in how many batches


@dataclass
class Session:
    """A job's parts on this rank."""

    job: JobType
    config: RunConfig
    context: Context
    mesh: Mesh
    manifest: DataSet
    schema: DatasetSchema
    statistics: SplitStatistics
    tasks: list[TaskSpec]
    losses: dict[str, TaskLoss]
    engine: Engine
    make_engine: Callable[[bool], Engine]
    """A new model in a new engine; whether a checkpoint will fill it."""
    peak: float
    """FLOP/s that one worker's device can reach at most; `peak_source` says where the figure is from."""
    peak_source: str
    guard: Guard = field(default_factory=Unowned)
    """Stands before everything that is written under the run's name."""
    _loaders: dict[tuple[str, bool], StepLoader] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.context.device

    def loader(self, part: str, shuffle: bool) -> StepLoader:
        """Batches of one part of the split: shuffled training steps, or evaluation in storage order.

        Made once for each use, as worker processes live as long as their loader; the first use is collective.
        """
        if (part, shuffle) not in self._loaders:
            self._loaders[part, shuffle] = self._make_loader(part, shuffle)
        return self._loaders[part, shuffle]

    def steps_of(self, part: str) -> Iterator[Step]:
        """One pass over a part in storage order. Collective: a rank may be late to each step with its data."""
        for step in self.loader(part, shuffle=False).steps(0):
            meet()
            yield step

    def close(self) -> None:
        """End loader processes and release the engine."""
        for loader in self._loaders.values():
            loader.close()
        self.engine.close()

    def start_over(self) -> None:
        """A new model and engine, with experts drawn, for no checkpoint could be read after all. Collective."""
        self.engine.close()
        self.engine = self.make_engine(False)

    def _make_loader(self, part: str, shuffle: bool) -> StepLoader:
        training = self.config.training
        loader = StepLoader(
            self.manifest,
            self.config.data,
            part,
            training.batch_size if shuffle else training.eval_batch_size or training.batch_size,
            self.context.rank,
            self.context.world,
            accumulation=training.accumulation if shuffle else 1,
            shuffle=shuffle,
            schema=self.schema,
            max_tokens=training.max_tokens,
        )
        # Evaluation keeps the order of storage. One micro-batch of one worker has nobody to be even with.
        if shuffle and training.deal == "tokens" and self.context.world * training.accumulation > 1:
            self._deal_by_tokens(loader)
        return loader

    def _deal_by_tokens(self, loader: StepLoader) -> None:
        """Ranks read the indices of different shards, and each learns what all records cost."""
        weights = self.job.token_weights(self.config, self.schema, self.engine.module)
        if weights is None:
            return
        own = read_costs(loader.part, weights, self.context.rank, self.context.world)
        cost_N = rows_everywhere(torch.from_numpy(own)).numpy()
        loader.deal_by_tokens(complete_costs(cost_N))


def build_session(
    config: RunConfig,
    context: Context,
    manifest: DataSet,
    schema: DatasetSchema,
    statistics: SplitStatistics,
    filled: bool = False,
) -> Session:
    """Build a job's parts. Collective over the ranks of the job.

    `schema` and `statistics` are the manifest's own for training and the checkpoint's for evaluation. With `filled` a
    checkpoint is going to set the weights: experts are not drawn, and `check_filled` is to follow.

    Raises:
        ValueError: parallel degrees that do not divide, an unknown task, a shape that the recipe cannot encode, or
            what a GPU's kernels cannot take.
    """
    torch.set_num_threads(config.parallel.threads_per_worker)
    job = job_type(config.model_job)
    config = job.resolve(config)
    init_distributed(context.device, config.parallel.timeout_s)
    parallel = _fit_to_world(config, context, gather_seats(context))
    mesh = create_mesh(parallel, config.model.moe, context.device)
    tasks = job.tasks(config, schema)

    def make_engine(filled: bool) -> Engine:
        # One seed on all ranks, for the dense part is the same everywhere; experts draw by their own ids.
        torch.manual_seed(config.training.seed)
        with undrawn() if filled else nullcontext():
            model = job.build(config, schema, [task.name for task in tasks], statistics, mesh.dispatcher())
        if uses_grouped_kernels(context.device, parallel.precision):
            _fit_to_gpu(job, config, context, schema, statistics, model)
        model.to(context.device)  # before the optimizer takes its parameters
        if not filled:
            _look_first(job, config, context, model, manifest, schema)
        return _engine(job, config, model, mesh, parallel)

    engine = make_engine(filled)
    losses = {task.name: _task_loss(config, task, statistics).to(context.device) for task in tasks}
    peak, source = peak_flops(context.device, parallel.precision)
    return Session(
        job, config, context, mesh, manifest, schema, statistics, tasks, losses, engine, make_engine, peak, source
    )


def _look_first(
    job: JobType, config: RunConfig, context: Context, model: nn.Module, manifest: DataSet, schema: DatasetSchema
) -> None:
    """What a new model sets by training records: rank 0 looks at them, all have the same. Collective."""

    def batches() -> Iterator[Batch]:  # opened when the first is asked for, which most models never do
        data = config.data.model_copy(update={"workers": 0})
        loader = StepLoader(manifest, data, "train", LOOKED_AT // LOOKS, schema=schema)
        try:
            for step in itertools.islice(loader.steps(0), LOOKS):
                yield from (batch.to(context.device) for batch in step.micro_batches)
        finally:
            loader.close()

    for parameter in job.look_first(model, batches() if context.rank == 0 else ()):
        own = parameter.data if context.rank == 0 else parameter.data[:0]
        parameter.data.copy_(rows_everywhere(own))


def _engine(job: JobType, config: RunConfig, model: nn.Module, mesh: Mesh, parallel: ParallelConfig) -> Engine:
    model.recompute = config.training.activation_checkpointing  # type: ignore[assignment]
    if config.training.compile:
        compile_dense_parts(model)
    optim = config.optim
    return Engine(
        model,
        mesh,
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        no_decay=partial(exempt_from_decay, job.no_decay),
        zero_stage=parallel.zero_stage,
        precision=parallel.precision,
        clip=optim.clip or 0.0,
        accumulation=config.training.accumulation,
        lr_of=partial(job.learning_rate, config),
        ema=optim.ema,
    )


def _fit_to_world(config: RunConfig, context: Context, seats: Sequence[Seat]) -> ParallelConfig:
    """The parallel section for the workers that really exist, where they are: fewer may be left after a failure."""
    parallel, moe = config.parallel, config.model.moe
    MeshSpec(parallel.workers, parallel.expert_parallel, moe.experts, moe.top_k).validate()
    degree = fitting_degree(parallel, moe.experts, seats)
    if context.rank == 0 and context.world > 1:
        for line in layout_lines(seats, degree, moe.experts):
            logger.info("%s", line)
    if context.world == parallel.workers:
        return parallel
    logger.warning(
        "%d workers instead of parallel.workers = %d: expert-parallel degree %d",
        context.world,
        parallel.workers,
        degree,
    )
    return parallel.model_copy(update={"workers": context.world, "expert_parallel": degree})


def _fit_to_gpu(
    job: JobType,
    config: RunConfig,
    context: Context,
    schema: DatasetSchema,
    statistics: SplitStatistics,
    model: torch.nn.Module,
) -> None:
    """Refuse what a kernel would refuse in the first step or later, and say what it takes slowly."""
    refuse_old_gpu(context.device)
    limits = gpu_limits(model)
    limits.refuse()
    training, tokens = config.training, job.routed_tokens(config, schema, statistics, model)
    sizes = (training.batch_size, training.accumulation, training.eval_batch_size)
    refuse_many_rows(model, batches_at_once(tokens, context.world, *sizes))
    if context.rank == 0:
        for sentence in limits.slow:
            logger.warning("%s", sentence)


def _task_loss(config: RunConfig, task: TaskSpec, statistics: SplitStatistics) -> TaskLoss:
    if task.kind == "survival":
        return HazardLoss(task)
    weight = None
    counts = statistics.tasks[task.name].counts if task.name in statistics.tasks else ()
    if config.training.class_weighting == "balanced" and task.kind in ("binary", "multiclass") and all(counts):
        weight = [sum(counts) / (len(counts) * count) for count in counts]
    return TaskLoss(task, weight, target_scale(statistics, task)[1], config.training.focal)
