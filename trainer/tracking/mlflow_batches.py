"""Metrics, parameters and tags sent in batches, of which one refused item stops nothing but itself.

What MLflow keeps otherwise than it was logged is counted and said: cut texts, infinity, names that it does not take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainer.tracking.failures import RefusedError, Remarks
from trainer.tracking.mlflow_client import meaning

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

# The server's limits.
METRICS_PER_BATCH = 1000
OTHERS_PER_BATCH = 100
PARAM_LENGTH = 6000
TAG_LENGTH = 8000
LARGEST_STEP = 2**63 - 1
CHANGED = "changed."  # before a parameter's name: the tag with its later value


def later_values(params: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str]:
    """Parameters of a run that has been continued with other values -> the last one."""
    return {key: tags[CHANGED + key] for key in params if CHANGED + key in tags}


class Batches:
    """Sends to one run.

    Args:
        check: called when something was refused, before the guilty item is looked for; raises if the run takes nothing.
    """

    def __init__(self, client: MlflowClient, run_id: str, remarks: Remarks, check: Callable[[], None]) -> None:
        self._client, self._run_id, self._remarks, self._check = client, run_id, remarks, check
        self._refused_metrics: set[str] = set()

    def metrics(self, points: Sequence[Metric]) -> None:
        """Points of curves; sending one a second time adds nothing."""
        good = []
        for point in points:
            if point.key in self._refused_metrics:
                self._remarks.add(f"metric {point.key!r} is refused, see above")
            elif abs(point.step) > LARGEST_STEP:
                self._remarks.add(f"metric {point.key!r} is left out at step {point.step}: MLflow's steps have 64 bits")
            else:
                good.append(point)
                if math.isinf(point.value):
                    self._remarks.add(f"metric {point.key!r} is infinite, which MLflow shows as 1.797e+308")
        self._refused_metrics |= self._send("metrics", good, METRICS_PER_BATCH)

    def params(self, values: Mapping[str, str]) -> None:
        """Parameters that the run does not have yet."""
        from mlflow.entities import Param

        cut = {key: self.cut("parameter", key, value, PARAM_LENGTH) for key, value in values.items()}
        self._send("params", [Param(key, value) for key, value in cut.items()], OTHERS_PER_BATCH)

    def tags(self, values: Mapping[str, str]) -> None:
        """Tags, also those that the run has."""
        from mlflow.entities import RunTag

        cut = {key: self.cut("tag", key, value, TAG_LENGTH) for key, value in values.items()}
        self._send("tags", [RunTag(key, value) for key, value in cut.items()], OTHERS_PER_BATCH)

    def cut(self, what: str, key: str, value: str, length: int) -> str:
        """A text as MLflow can keep it."""
        if len(value) > length:
            self._remarks.add(f"{what} {key!r} is cut from {len(value)} to {length} characters")
        return value[:length]

    def _send(self, kind: str, items: Sequence[Any], most: int) -> set[str]:
        """The keys of those that are refused."""
        refused: set[str] = set()
        for start in range(0, len(items), most):
            batch = items[start : start + most]
            reason = self._try(kind, batch)
            if reason is not None:
                self._check()
                refused |= self._without_the_guilty(kind, batch, reason)
        return refused

    def _without_the_guilty(self, kind: str, items: Sequence[Any], reason: str) -> set[str]:
        """Send the rest of a refused batch, by halves."""
        if len(items) == 1:
            self._remarks.add(f"{kind.removesuffix('s')} {items[0].key!r} is refused: {reason}")
            return {items[0].key}
        refused: set[str] = set()
        middle = len(items) // 2
        for half in (items[:middle], items[middle:]):
            left = [item for item in half if kind != "metrics" or item.key not in refused]
            if len(left) < len(half):
                self._remarks.add("points of metrics whose name is refused", len(half) - len(left))
            problem = self._try(kind, left) if left else None
            if problem is not None:
                refused |= self._without_the_guilty(kind, left, problem)
        return refused

    def _try(self, kind: str, items: Sequence[Any]) -> str | None:
        """Why they were refused, or None. Raises for what is no refusal."""
        try:
            batch: dict[str, Any] = {kind: items}
            self._client.log_batch(self._run_id, **batch)
        except Exception as error:
            found = meaning(error, None)
            if isinstance(found, RefusedError):
                return str(found)
            raise
        return None
