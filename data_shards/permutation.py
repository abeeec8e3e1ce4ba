"""Seeded permutations, for the order of an epoch and for splits: the same on every platform and library version.

Sorts raw Philox output (Salmon et al. 2011), whose stream is fixed by its definition, under a key that is a BLAKE2
digest; library versions, hash seeds and platforms do not matter.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

_LARGE = 1 << 18  # numbers, above which one sort waits for memory most of the time


def permutation(n: int, *key: object) -> np.ndarray:
    """int64 [n]: a permutation that depends on n and the key only."""
    digest = hashlib.blake2b(repr(("fleximoe-order-1", *key)).encode(), digest_size=16).digest()
    raw = np.random.Philox(key=np.frombuffer(digest, "<u8").astype(np.uint64)).random_raw(n)
    return np.argsort(raw, kind="stable") if n < _LARGE else _by_first_byte(raw)


def _by_first_byte(raw: np.ndarray) -> np.ndarray:
    """The same order: values with one first byte fit into a processor's cache, and are sorted by threads."""
    first = (raw >> np.uint64(56)).astype(np.uint8)
    order = np.argsort(first, kind="stable")
    ends = [0, *np.cumsum(np.bincount(first, minlength=256)).tolist()]

    raw = raw[order]

    def sort(bounds: tuple[int, int]) -> None:
        own = slice(*bounds)
        order[own] = order[own][np.argsort(raw[own], kind="stable")]

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(sort, pairwise(ends)))
    return order
