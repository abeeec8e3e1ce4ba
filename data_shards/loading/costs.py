"""What each record of a part costs, in tokens, from the shards' indices alone: no record is read.

An index has the length of every modality of every record, and whether it is there. What that costs depends on the
model, whose trainer hands down weights. Ranks read the indices of different shards and put the figures together once,
before the first step; from then on all of them know all costs, and deal every step alike.

Shapes: N records of the part in storage order, n rows of an index, M modalities as the model numbers them, m those of
one data set.
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
from data_shards.shards.manifest import Manifest
from data_shards.shards.reader import read_index

logger = logging.getLogger(__name__)

READERS = 8  # indices that are asked for at the same time
UNKNOWN = 0


@dataclass(frozen=True)
class TokenWeights:
    """What a record asks of a model.

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

    def tokens(self, lengths_nm: np.ndarray, numbers_m: np.ndarray, objects_nm: np.ndarray | None = None) -> np.ndarray:
        """int64 [n], at least 1: of records with these lengths of the modalities with these numbers.

        objects_nm: how many objects of each, where any is timed.
        """
        there_nm = lengths_nm != ABSENT
        tokens_n = there_nm @ self.present_M[numbers_m] + ~there_nm @ self.absent_M[numbers_m]
        tokens_n = tokens_n + np.where(there_nm, lengths_nm, 0) @ self.unit_M[numbers_m]
        if objects_nm is not None and self.object_M is not None and self.empty_M is not None:
            object_m = self.object_M[numbers_m]
            tokens_n = tokens_n + np.where(there_nm, objects_nm, 0) @ object_m
            # An object may be of length 0; of codes the length is their number.
            empty_nm = there_nm & ((objects_nm == 0) | ((object_m == 0) & (lengths_nm == 0)))
            tokens_n = tokens_n + empty_nm @ self.empty_M[numbers_m]
        return np.maximum(1, np.rint(tokens_n)).astype(np.int64)


def read_costs(part: PlainPart | MixedPart, weights: TokenWeights, rank: int = 0, world: int = 1) -> np.ndarray:
    """int32 [some of N]: costs of the records in this rank's stretch of the shards; all ranks' in turn are all of N.

    Records of a shard whose index cannot be read are `UNKNOWN`, here and on every rank; reading them says why.
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
            records = sum(chunk.parts[column] for chunk in manifest.shards[number].chunks)
            return np.full(records, UNKNOWN, np.int32)
        rows = index.members(column)
        return weights.tokens(index.lengths_nM[rows], numbers_m, index.objects_nM[rows]).astype(np.int32)

    with ThreadPoolExecutor(READERS) as pool:
        found: Iterator[np.ndarray] = pool.map(costs, own)
        return np.concatenate([np.empty(0, np.int32), *found])


def complete_costs(cost_N: np.ndarray) -> np.ndarray:
    """int32 [N], at least 1: with the mean of the known ones for those that are `UNKNOWN`."""
    known_N = cost_N != UNKNOWN
    mean = int(cost_N[known_N].sum(dtype=np.int64)) // max(1, int(known_N.sum()))
    return np.where(known_N, cost_N, max(1, mean)).astype(np.int32)
