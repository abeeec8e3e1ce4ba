"""Seeded permutations, for the order of an epoch and for splits: the same on every platform and library version.

Sorts raw Philox output (Salmon et al. 2011), whose stream is fixed by its definition, under a key that is a BLAKE2
digest; library versions, hash seeds and platforms do not matter.
"""

from __future__ import annotations

import hashlib

import numpy as np


def permutation(n: int, *key: object) -> np.ndarray:
    """int64 [n]: a permutation that depends on n and the key only."""
    digest = hashlib.blake2b(repr(("fleximoe-order-1", *key)).encode(), digest_size=16).digest()
    raw = np.random.Philox(key=np.frombuffer(digest, "<u8").astype(np.uint64)).random_raw(n)
    return np.argsort(raw, kind="stable")
