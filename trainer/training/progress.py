"""Where a run is, and that no sample of an epoch is delivered twice or lost without being counted.

A sample is a record, or a moment of a record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data_shards.errors import ShardError, skipped_words


@dataclass
class Progress:
    """Where a run is. Small, the same on every rank, and all that a checkpoint needs besides tensors.

    `delivered` and `lost` count samples of the current epoch over all ranks, `skipped` those of the whole run.
    """

    step: int = 0
    epoch: int = 0
    offset: int = 0
    samples_seen: int = 0
    tokens_seen: int = 0
    delivered: int = 0
    lost: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    score: float | None = None
    best_score: float | None = None
    best_step: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    bad_evaluations: int = 0
    evaluated_step: int = -1
    nonfinite_steps: int = 0
    seconds: float = 0.0
    """That training took so far, by the first rank's clock; counted where `training.minutes` is given."""
    finished: bool = False
    moves: list[dict[str, Any]] = field(default_factory=list)
    """When data were left for a newer version: `step`, `from` and `to` (digests), `left` (the epoch that was begun, and
    how many of its samples had been taken)."""

    def account(self, delivered: int, lost: Mapping[str, int], most: int) -> None:
        """Add a global step's samples.

        Args:
            lost: reason -> samples that were skipped. most: how many a run may skip.

        Raises:
            ShardError: more than that were skipped in this run, over all ranks.
        """
        self.delivered += delivered
        self.lost += sum(lost.values())
        self.skipped = {name: self.skipped.get(name, 0) + n for name, n in lost.items()} | {
            name: n for name, n in self.skipped.items() if name not in lost
        }
        total = sum(self.skipped.values())
        if total > most:
            raise ShardError(
                "of this run", f"{skipped_words(self.skipped)}, data.max_skipped is {most}", reason="limit"
            )

    def move(self, before: str, after: str) -> None:
        """Go on with a newer version of the data: an epoch begins, and scores of the smaller parts compare no more."""
        self.moves.append({"step": self.step, "from": before, "to": after, "left": [self.epoch, self.offset]})
        self.epoch, self.offset, self.delivered, self.lost = self.epoch + (self.offset > 0), 0, 0, 0
        self.score, self.best_score, self.best_step, self.best_metrics = None, None, None, {}
        self.bad_evaluations, self.evaluated_step, self.finished = 0, -1, False

    def close_epoch(self, samples: int) -> None:
        """Every sample of the epoch was delivered once or is accounted for; then the next epoch begins."""
        assert self.delivered + self.lost == samples, (
            f"epoch {self.epoch}: {self.delivered} samples delivered and {self.lost} skipped, "
            f"but the manifest has {samples}"
        )
        self.epoch, self.offset, self.delivered, self.lost = self.epoch + 1, 0, 0, 0
