"""Steps for one rank: order -> chunk reads -> records -> packed batches, in this process or in worker processes.

State is one ``Position``: samples handed to the caller. How far workers have read ahead never shows.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_shards.config import DataConfig
from data_shards.errors import ShardError, skipped_words
from data_shards.loading.batch import Batch
from data_shards.loading.collate import Collator
from data_shards.loading.dataset import DataSet, MappedReader, PlainPart, part_of
from data_shards.loading.mixed_order import MixedPart, MixedReader
from data_shards.loading.order import Position
from data_shards.loading.shares import Evenness, Load, Place, share_by_records, share_by_tokens
from data_shards.records.schema import DatasetSchema
from data_shards.shards.reader import Reader

logger = logging.getLogger(__name__)


@dataclass
class Step:
    """What one rank gets for one global step.

    Attributes:
        micro_batches: ``accumulation`` batches, possibly empty ones.
        samples: that the global step takes from the order, over all ranks (skipped ones included): records, or moments
            of records.
        position: where the epoch stands after this step; ``offset == StepLoader.samples`` means the epoch is done.
        skipped: samples this rank had to leave out, by reason.
        io: ``reads``, ``bytes`` and ``retries`` of storage for this step (of the process that fetched it).
        load: how even the step's micro-batches are over all ranks; None where it was dealt by records.
    """

    micro_batches: list[Batch]
    samples: int
    position: Position
    skipped: dict[str, int]
    io: dict[str, int]
    load: Load | None = None


@dataclass
class _Made:
    """A step as it was made: batches, or from another process flat buffers, or the error to raise where it is used."""

    batches: list[Batch]
    skipped: dict[str, int]
    io: dict[str, int]
    load: Load | None
    buffers: list[Tensor] = field(default_factory=list)
    error: ShardError | None = None

    def pin_memory(self) -> _Made:
        """Called by a thread of torch's loader where there is a GPU: the copy to it then needs no wait."""
        return replace(self, buffers=[buffer.pin_memory() for buffer in self.buffers])


class _Steps(torch.utils.data.Dataset[_Made]):
    """(epoch, start) -> the rank's micro-batches as flat buffers; the reader is made where it is used."""

    def __init__(
        self, data: DataSet, config: DataConfig, part: str, order: dict[str, Any], place: Place, schema: DatasetSchema
    ) -> None:
        self.schema, self.order, self.place = schema, order, place
        self.data = part_of(data, config, part, schema)
        # Of all samples of the part; in memory that worker processes share.
        self.cost_N: Tensor | None = None
        self._reader: Reader | MappedReader | MixedReader | None = None
        self._order = lru_cache(maxsize=2)(self._make_order)

    def __getstate__(self) -> dict[str, Any]:
        # For a worker process: readers hold open storage, and a cache of a bound method cannot be pickled.
        return {**self.__dict__, "_reader": None, "_order": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._order = lru_cache(maxsize=2)(self._make_order)

    def _make_order(self, epoch: int) -> Any:
        return self.data.order(self.order["seed"], epoch, self.order["shuffle"])

    def make(self, epoch: int, start: int) -> _Made:
        """The rank's micro-batches of the step that starts at ``start``."""
        # Made in the process that reads: open files and connections do not travel.
        if self._reader is None:
            self._reader = self.data.reader()
            self._collate = Collator(self.schema)
        before = self._reader.io.copy()
        shares, load = self._shares(epoch, start)
        batches, skipped = [], Counter[str]()
        for number_B in shares:
            # Also of no samples: every rank takes part in every micro-batch.
            records, index_B, lost = self._reader.read(*self.data.places(number_B))
            batches.append(self._collate(records, index_B, self.data.known(index_B)))
            skipped += lost
        return _Made(batches, dict(skipped), dict(self._reader.io - before), load)

    def _shares(self, epoch: int, start: int) -> tuple[list[np.ndarray], Load | None]:
        """Sample numbers of each micro-batch: of the same global step on every rank, so nobody tells anybody."""
        number_N = self._order(epoch).numbers(start, start + self.order["batch_size"])
        if self.cost_N is None:
            return share_by_records(number_N, self.data.bounds, self.place), None
        cost_N = self.cost_N.numpy()[number_N].astype(np.int64)
        return share_by_tokens(number_N, cost_N, self.data.bounds, self.place)

    def __getitem__(self, step: tuple[int, int]) -> _Made:
        try:
            made = self.make(*step)
        except ShardError as error:  # torch would rebuild it in the main process from its text alone
            return _Made([], {}, {}, None, error=error)
        # One tensor a batch: each tensor that goes to another process costs a file of shared memory.
        return replace(made, batches=[], buffers=[batch.to_buffer() for batch in made.batches])


class _Schedule:
    """The (epoch, start) pairs that workers fetch next; refilled for each pass over persistent workers."""

    def __init__(self) -> None:
        self.epoch, self.starts = 0, range(0)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, start) for start in self.starts)

    def __len__(self) -> int:
        return len(self.starts)


class StepLoader:
    """Global steps of one part of a data set, as one rank sees them.

    Args:
        manifest: an opened data set or mixture. config: the data section. part: e.g. ``train``.
        batch_size: samples of a global step over all ranks and micro-batches.
        rank, world: this data rank and their number. accumulation: micro-batches per step.
        shuffle: False takes storage order (evaluation). seed: of the order; default ``config.seed``.
        schema: modalities, channels and tasks as batches are to have them, by name; default: as the data have them.
        max_tokens: of a micro-batch, above which it says so (``deal_by_tokens``).

    Attributes:
        samples: of the part: its records, or all moments of them. steps_per_epoch: steps of an epoch from its start.
        skipped: samples this loader had to leave out so far, by reason.
        evenness: of the steps so far, where they are dealt by tokens.

    Raises:
        ValueError: an unknown split or part, an illegal rank or size, or memory:// data with worker processes.
    """

    def __init__(
        self,
        manifest: DataSet,
        config: DataConfig,
        part: str,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        accumulation: int = 1,
        shuffle: bool = True,
        seed: int | None = None,
        schema: DatasetSchema | None = None,
        max_tokens: int | None = None,
    ) -> None:
        if batch_size < 1 or accumulation < 1 or not 0 <= rank < world:
            raise ValueError(
                f"batch_size {batch_size} and accumulation {accumulation} must be at least 1, "
                f"and rank {rank} must lie in 0 to {world - 1}"
            )
        if config.workers and manifest.in_memory:
            raise ValueError("memory:// lives in one process only; set data.workers to 0 or use another place")
        self.config, self.batch_size, self.accumulation = config, batch_size, accumulation
        seed = config.seed if seed is None else seed
        order, place = {"batch_size": batch_size, "shuffle": shuffle, "seed": seed}, Place(rank, world, accumulation)
        self._steps = _Steps(manifest, config, part, order, place, schema or manifest.schema)
        self.evenness = Evenness(place, max_tokens)
        self.samples = self._steps.data.samples
        self.steps_per_epoch = -(-self.samples // batch_size)
        self.skipped: Counter[str] = Counter()
        self._warn_if_thrashing(manifest, world)
        self._schedule = _Schedule()
        self._workers: torch.utils.data.DataLoader[Any] | None = None

    @property
    def part(self) -> PlainPart | MixedPart:
        """What the loader reads from."""
        return self._steps.data

    def deal_by_tokens(self, cost_N: np.ndarray) -> None:
        """From the next pass on, give each micro-batch of all ranks about equally many tokens, not samples.

        Args:
            cost_N: int32, tokens of each sample of the part in storage order (``costs``); the same on every rank, or
                samples would be read twice and others never.

        Raises:
            ValueError: not one positive number a sample; worker processes are at work already.
        """
        if cost_N.shape != (self.samples,) or (cost_N < 1).any():
            raise ValueError(f"costs of shape {cost_N.shape} are not one positive number for each of {self.samples}")
        if self._workers is not None:
            raise ValueError("deal_by_tokens comes before the first pass: worker processes deal by records already")
        self._steps.cost_N = torch.from_numpy(cost_N.astype(np.int32))
        if self.config.workers:
            self._steps.cost_N.share_memory_()

    def steps(self, epoch: int, offset: int = 0) -> Iterator[Step]:
        """Steps of ``epoch`` from ``offset`` samples on; every rank yields the same number of steps.

        Raises:
            ValueError: an offset outside the epoch.
            ShardError: damaged data (``on_error: raise``), or more than ``max_skipped`` samples skipped.
        """
        if not 0 <= offset <= self.samples:
            raise ValueError(f"offset {offset} is outside the epoch's 0 to {self.samples} samples")
        starts = range(offset, self.samples, self.batch_size)
        # strict: a worker that ends early must not look like the end of the epoch.
        for start, made in zip(starts, self._fetch(epoch, starts), strict=True):
            self._count(made.skipped)
            if made.load is not None:
                self.evenness.add(made.load)
            stop = min(start + self.batch_size, self.samples)
            yield Step(made.batches, stop - start, Position(epoch, stop), made.skipped, made.io, made.load)

    def _warn_if_thrashing(self, manifest: DataSet, world: int) -> None:
        """A window that does not fit in memory makes every step read its chunks again."""
        largest = manifest.largest_chunk
        held = largest * -(-self.config.window_chunks // world)
        if held > self.config.memory_bytes:
            logger.warning(
                "%d chunks of a window need %d bytes per rank, data.memory_bytes is %d: chunks will be read repeatedly",
                *(self.config.window_chunks, held, self.config.memory_bytes),
            )

    def close(self) -> None:
        """Stop the worker processes."""
        self._workers = None

    def _fetch(self, epoch: int, starts: range) -> Iterator[_Made]:
        if not self.config.workers:
            yield from (self._steps.make(epoch, start) for start in starts)
            return
        # Workers outlive an epoch, so the sampler they share is set anew instead of replaced.
        self._schedule.epoch, self._schedule.starts = epoch, starts
        for fetched in self._pool():
            if fetched.error is not None:
                raise fetched.error
            yield replace(fetched, batches=[Batch.from_buffer(buffer) for buffer in fetched.buffers], buffers=[])

    def _pool(self) -> torch.utils.data.DataLoader[Any]:
        """Workers live across epochs.

        They are forked from a clean helper process that has imported this module once: threads and devices of the
        training process would not survive a fork of itself.
        """
        if self._workers is None:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])
            self._workers = torch.utils.data.DataLoader(
                self._steps,
                batch_size=None,  # an item is a whole step
                sampler=self._schedule,  # type: ignore[arg-type]
                num_workers=self.config.workers,
                prefetch_factor=self.config.prefetch,
                pin_memory=torch.cuda.is_available(),
                persistent_workers=True,
                multiprocessing_context=context,
            )
        return self._workers

    def _count(self, skipped: dict[str, int]) -> None:
        self.skipped.update(skipped)
        if self.skipped.total() > self.config.max_skipped:
            found = f"on this rank {skipped_words(self.skipped)}"
            raise ShardError("", f"{found}, data.max_skipped is {self.config.max_skipped}", reason="limit")
