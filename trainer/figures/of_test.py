"""What is kept of a test part, whatever was tested: figures, and the predictions behind them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from data_shards import TaskSpec
from trainer.figures.evaluation import confusion_figure, reliability_figure, roc_figure
from trainer.figures.survival import curves_figure, survival_calibration_figure
from trainer.metrics.calibration import statements, statements_name
from trainer.metrics.prediction_table import write_predictions
from trainer.metrics.predictions import Predictions
from trainer.metrics.survival_scores import followed
from trainer.run_folder import TEST_PREDICTIONS
from trainer.tracking.tracker import Tracker


def log_predictions(tracker: Tracker, tasks: list[TaskSpec], predictions: Predictions, step: int | None = None) -> None:
    """What was said about each test record, by the checkpoint of which step: intervals and paired comparisons are made
    from it, and the calibration that an export carries."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(TEST_PREDICTIONS).name
        write_predictions(path, tasks, predictions, step)
        tracker.log_file(TEST_PREDICTIONS, path)


def log_test_figures(tracker: Tracker, tasks: list[TaskSpec], predictions: Predictions) -> None:
    """Figures of the test part: ROC curve of binary tasks, confusion matrix of multi-class ones, reliability of both.

    Of survival the curves beside Kaplan-Meier's, and calibration at a few times.
    """
    for task in tasks:
        if task.kind == "survival":
            _log_survival(tracker, task, predictions)
            continue
        stated = statements(task, predictions.logits[task.name], predictions.targets[task.name])
        if stated is not None and len(stated[0]):
            tracker.log_figure(
                f"figures/reliability_{task.name}.png", reliability_figure({statements_name(task): stated})
            )
        target_Bt = predictions.targets[task.name]
        known_B = ~target_Bt.isnan().any(dim=1)
        logits_BC, truth_B = predictions.logits[task.name][known_B], target_Bt[known_B][:, 0].long()
        if task.kind == "binary" and 0 < int(truth_B.sum()) < len(truth_B):
            tracker.log_figure(f"figures/roc_{task.name}.png", roc_figure(task, logits_BC[:, 0].sigmoid(), truth_B))
        if task.kind == "multiclass" and len(truth_B):
            tracker.log_figure(f"figures/confusion_{task.name}.png", confusion_figure(task, logits_BC, truth_B))


def _log_survival(tracker: Tracker, task: TaskSpec, predictions: Predictions) -> None:
    target_B2 = predictions.targets[task.name]
    if bool(target_B2.isnan().any(dim=1).all()):
        return
    own = followed(task, predictions.logits[task.name], target_B2)
    tracker.log_figure(f"figures/survival_{task.name}.png", curves_figure(task, own))
    if len(own.edge_T):
        tracker.log_figure(f"figures/calibration_{task.name}.png", survival_calibration_figure(task, own))
