"""A part of a data set as one table in memory, read by the loader that training reads by.

Shapes: B records or moments, X columns, M modalities, t targets of a task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from data_shards import Batch, CodesGroup, DataConfig, Manifest, StepLoader
from data_shards.errors import ShardError, skipped_words
from data_shards.records.schema import FIRST_CODE
from trainer.baseline.features.fill import rows
from trainer.baseline.features.layout import Layout

READ = 256  # samples at once
MOST_CODES, FEWEST_RECORDS = 256, 10
Told = Callable[[int, int], None]  # called with samples that were read, and samples of the part


@dataclass(frozen=True)
class Table:
    """Samples of one part, in the order of the data set.

    Attributes:
        x_BX: float32, NaN where there is nothing. index_B: int64, numbers of the records. present_BM: bool.
        targets: task -> float32 (B, t), NaN = unlabelled. moment_B: as of `Predictions`.
        skipped: reason -> samples that could not be read.
    """

    x_BX: np.ndarray
    present_BM: np.ndarray
    index_B: Tensor
    targets: dict[str, Tensor]
    moment_B: Tensor | None
    skipped: dict[str, int]

    def __len__(self) -> int:
        return len(self.x_BX)

    def of_columns(self, column_X: np.ndarray) -> Table:
        """The same samples with some of the columns."""
        return replace(self, x_BX=self.x_BX[:, column_X])


def varying(x_BX: np.ndarray) -> np.ndarray:
    """int64: columns with two different values; what is there or not has columns of its own."""
    lowest_X, highest_X = np.fmin.reduce(x_BX, axis=0), np.fmax.reduce(x_BX, axis=0)
    return np.flatnonzero(lowest_X < highest_X).astype(np.int64)


def read_table(
    manifest: Manifest,
    config: DataConfig,
    part: str,
    layout: Layout,
    told: Told | None = None,
    hide: Callable[[Batch], Batch] = lambda batch: batch,
) -> Table:
    """`hide` takes away from a batch what is not to be seen.

    Raises:
        ValueError: an unknown split or part. ShardError: damaged data, or nothing that could be read.
    """
    loader = StepLoader(manifest, config, part, READ, shuffle=False)
    x_BX, read = np.empty((loader.samples, len(layout.names)), np.float32), 0
    kept: list[Batch] = []
    for batch in map(hide, _batches(loader, told)):
        x_BX[read : read + len(batch)] = rows(layout, batch)
        read += len(batch)
        kept.append(batch.changed(batch.present_BM, {}))  # what of it is small
    if not read:
        raise ShardError("", f"no record of part {part} could be read: {skipped_words(loader.skipped)}", reason="limit")
    targets = {name: torch.cat([batch.targets[name] for batch in kept]) for name in manifest.schema.task_names}
    moments = [batch.moment_B for batch in kept if batch.moment_B is not None]
    present_BM = torch.cat([batch.present_BM for batch in kept]).numpy()
    index_B, moment_B = torch.cat([batch.index_B for batch in kept]), torch.cat(moments) if moments else None
    return Table(x_BX[:read], present_BM, index_B, targets, moment_B, dict(loader.skipped))


def frequent_codes(manifest: Manifest, config: DataConfig, told: Told | None = None) -> dict[str, tuple[int, ...]]:
    """Modality of codes -> the codes that most training samples have: at most 256, each in ten samples at least.

    Those that no vocabulary names are one code, which has no column of its own. Reads the training part once, if there
    are codes at all.
    """
    specs = manifest.schema.modalities
    counts = {number: np.zeros(spec.codes, np.int64) for number, spec in enumerate(specs) if spec.kind == "codes"}
    if not counts:
        return {}
    for batch in _batches(StepLoader(manifest, config, "train", READ, shuffle=False), told):
        group = next(group for group in batch.groups.values() if isinstance(group, CodesGroup))
        offset_P, id_O = group.offsets.numpy(), group.ids_O.numpy()
        for pair, number in enumerate(group.modality_P.tolist()):
            counts[number][np.unique(id_O[offset_P[pair] : offset_P[pair + 1]])] += 1
    chosen = {}
    for number, count_N in counts.items():
        count_N[:FIRST_CODE] = 0
        order = np.argsort(-count_N, kind="stable")[:MOST_CODES]
        chosen[specs[number].name] = tuple(sorted(order[count_N[order] >= FEWEST_RECORDS].tolist()))
    return chosen


def _batches(loader: StepLoader, told: Told | None) -> Iterator[Batch]:
    done = 0
    for step in loader.steps(0):
        yield from step.micro_batches
        done += step.samples
        if told is not None:
            told(done, loader.samples)
    loader.close()
