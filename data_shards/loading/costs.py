"""What each sample of a part costs, in tokens, from the shards' indices alone: no record is read.

An index has the length of every modality of every record, how many objects there are, and whether it is there; of
records that are seen at moments it also has the moments and a few times of the rows, from which follows what a moment
sees (``records/knots.py``: exactly whether a modality has begun, about how many of its rows). What that costs depends
on the model, whose trainer hands down weights. Ranks read the indices of different shards and put the figures together
once, before the first step; from then on all of them know all costs, and deal every step alike.

Shapes: N samples of the part in storage order, n rows of an index, S samples of some of them, M modalities as the model
numbers them, m those of one data set.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from data_shards.errors import ShardError
from data_shards.loading.dataset import PlainPart
from data_shards.loading.mixed_order import MixedPart
from data_shards.loading.order import share_bounds
from data_shards.records.columns import ABSENT
from data_shards.records.knots import knot_tables, rows_until
from data_shards.records.schema import DatasetSchema
from data_shards.shards.index import ShardIndex
from data_shards.shards.manifest import Manifest
from data_shards.shards.reader import read_index

logger = logging.getLogger(__name__)

READERS = 8  # indices that are asked for at the same time
UNKNOWN = 0


@dataclass(frozen=True)
class Held:
    """What samples hold of each modality: whether it is there [S, m], its objects and its length, 0 where it is not."""

    there_Sm: np.ndarray
    objects_Sm: np.ndarray
    lengths_Sm: np.ndarray


@dataclass(frozen=True)
class TokenWeights:
    """What a sample asks of a model.

    Attributes:
        present_M, absent_M: tokens of a modality that is there, and of one that is not.
        unit_M: tokens' worth of arithmetic for each event, code, sample or byte of it.
        object_M: tokens of each object of a timed modality. empty_M: of one that is there without object or code. None
            where no modality is timed.
    """

    present_M: np.ndarray
    absent_M: np.ndarray
    unit_M: np.ndarray
    object_M: np.ndarray | None = None
    empty_M: np.ndarray | None = None

    def tokens(self, held: Held, numbers_m: np.ndarray) -> np.ndarray:
        """int64 [S], at least 1: of samples that hold this of the modalities with these numbers."""
        tokens_S = held.there_Sm @ self.present_M[numbers_m] + ~held.there_Sm @ self.absent_M[numbers_m]
        tokens_S = tokens_S + held.lengths_Sm @ self.unit_M[numbers_m]
        if self.object_M is not None and self.empty_M is not None:
            object_m = self.object_M[numbers_m]
            tokens_S = tokens_S + held.objects_Sm @ object_m
            # An object may be of length 0; of codes the length is their number.
            none_Sm = (held.objects_Sm == 0) | ((object_m == 0) & (held.lengths_Sm == 0))
            tokens_S = tokens_S + (held.there_Sm & none_Sm) @ self.empty_M[numbers_m]
        return np.maximum(1, np.rint(tokens_S)).astype(np.int64)


def held_by(index: ShardIndex, schema: DatasetSchema, column: int) -> Held:
    """What the samples of one (split, part) column hold, in storage order."""
    row_X = np.flatnonzero(index.members(column))
    lengths_Xm, objects_Xm = index.lengths_nM[row_X], index.objects_nM[row_X]
    whole = Held(lengths_Xm != ABSENT, np.maximum(objects_Xm, 0), np.maximum(lengths_Xm, 0))
    return seen_at_moments(index, schema, whole, row_X) if schema.has_moments else whole


def seen_at_moments(index: ShardIndex, schema: DatasetSchema, whole: Held, row_X: np.ndarray) -> Held:
    """What the samples of some rows hold, where each row as a whole holds that."""
    moments_X = index.moments_n[row_X]
    at_S, time_S = np.repeat(np.arange(len(row_X)), moments_X), index.times_K[index.samples_of(row_X)]
    rows_nM = index.timed_rows(schema)
    tables = knot_tables(index.knots_X, rows_nM)
    there_Sm, objects_Sm, lengths_Sm = whole.there_Sm[at_S], whole.objects_Sm[at_S], whole.lengths_Sm[at_S]
    objects_Sm, lengths_Sm = objects_Sm.astype(np.float32), lengths_Sm.astype(np.float32)
    for m, spec in enumerate(schema.modalities):
        if not spec.has_times:
            continue
        rows_S, knots_SQ = rows_nM[row_X, m][at_S], tables[m][row_X][at_S]
        end_S = time_S.astype(np.float64) * schema.moment_ratios[m]
        until_S = rows_until(knots_SQ, rows_S, end_S)
        seen_S = until_S - rows_until(knots_SQ, rows_S, end_S - spec.horizon) if spec.horizon else until_S
        there_Sm[:, m] = until_S > 0
        if spec.has_objects and spec.max_objects:
            seen_S = np.minimum(seen_S, spec.max_objects)
        objects_Sm[:, m] = seen_S if spec.has_objects else there_Sm[:, m]
        # Objects are taken to be equally long.
        lengths_Sm[:, m] *= np.divide(seen_S, rows_S, out=np.zeros(len(seen_S)), where=rows_S > 0)
    return Held(there_Sm, objects_Sm, lengths_Sm)


def read_costs(part: PlainPart | MixedPart, weights: TokenWeights, rank: int = 0, world: int = 1) -> np.ndarray:
    """int32 [some of N]: costs of the samples in this rank's stretch of the shards; all ranks' in turn are all of N.

    Samples of a shard whose index cannot be read are `UNKNOWN`, here and on every rank; reading them says why.
    """
    shards = [(source, number) for source in part.sources() for number in range(len(source[0].shards))]
    own = shards[slice(*share_bounds(len(shards), rank, world))]

    def costs(shard: tuple[tuple[Manifest, int, np.ndarray], int]) -> np.ndarray:
        (manifest, column, numbers_m), number = shard
        storage = manifest.storage.with_retries(part.config.retries, part.config.retry_delay_s)
        try:
            index = read_index(manifest, number, storage)
        except ShardError as error:
            logger.warning("costs of a shard's records are taken for the mean: %s", error)
            counts = manifest.counts(*manifest.columns[column])
            return np.full(int(counts[manifest.chunks.cut(number)].sum()), UNKNOWN, np.int32)
        return weights.tokens(held_by(index, manifest.schema, column), numbers_m).astype(np.int32)

    with ThreadPoolExecutor(READERS) as pool:
        found: Iterator[np.ndarray] = pool.map(costs, own)
        return np.concatenate([np.empty(0, np.int32), *found])


def complete_costs(cost_N: np.ndarray) -> np.ndarray:
    """int32 [N], at least 1: with the mean of the known ones for those that are `UNKNOWN`."""
    known_N = cost_N != UNKNOWN
    mean = int(cost_N[known_N].sum(dtype=np.int64)) // max(1, int(known_N.sum()))
    return np.where(known_N, cost_N, max(1, mean)).astype(np.int32)
