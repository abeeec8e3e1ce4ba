"""Results that a notebook shows as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from launch.output.html import table
from trainer.metrics.main_metric import HIDDEN, by_rate, task_curves

if TYPE_CHECKING:
    import pandas as pd


class Metrics(dict[str, float]):
    """Metrics by name, e.g. `test/auroc`; a dictionary that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        return table(("metric", "value"), sorted(self.items()))


def frame(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> pd.DataFrame:
    """A data frame."""
    import pandas as pd  # slow, and not every call gives one

    return pd.DataFrame([list(row) for row in rows], columns=list(columns))


CURVE = ("metric", "hidden", "share", "mean", "smallest", "largest")


def curve_frame(curve: Mapping[str, Any]) -> pd.DataFrame:
    """What `evaluate --missing-curve` prints, of all tasks: one row a share of what is hidden, or a modality.

    Columns: `metric`; `hidden`: what is, in words, or `without MODALITY`; `share` of it; `mean`, `smallest` and
    `largest` value over the draws. The first row of a metric hides nothing.
    """
    rows: list[tuple[Any, ...]] = []
    for task in task_curves(dict(curve)):
        metric = task["metric"]
        whole = task["whole"][metric]
        rows.append((metric, "nothing", 0.0, whole, whole, whole))
        for what, words in HIDDEN.items():
            rows += [(metric, words, *values) for values in by_rate(task, what)]
        for row in task["without"]:
            value = row["metrics"].get(metric, whole)
            rows.append((metric, f"without {row['modality']}", 1.0, value, value, value))
    return frame(CURVE, rows)


REASONS = ("record", "key", "task", "modality", "object", "time", "what", "share")


def reasons_frame(predicted: pd.DataFrame) -> pd.DataFrame:
    """What `predict --explain` says, one row a reason, those with the largest share of a record first.

    Columns: `record`, `key`, `task`; `modality`; `object` (its number, empty for the modality as a whole), its `time`,
    `what` it says; `share` of the change of the answer that hiding it makes. With moments also `moment`.
    """
    moments = ["moment"] if "moment" in predicted.columns else []
    rows: list[tuple[Any, ...]] = []
    tasks = [name.removesuffix(".modality_share") for name in predicted.columns if name.endswith(".modality_share")]
    for _, said in predicted.iterrows():
        about = (said["record"], *(said[name] for name in moments), said["key"])
        for task in tasks:
            own = [
                (*about, task, name, None, None, None, share)
                for name, share in said[f"{task}.modality_share"].items()
                if share is not None
            ]
            found = said.get(f"{task}.objects")
            objects = [
                (*about, task, one["modality"], one["object"], one["time"], one["what"], one["share"])
                for one in (found if found is not None else ())
            ]
            rows += sorted(own, key=lambda row: -row[-1]) + objects
    return frame(["record", *moments, *REASONS[1:]], rows)
