"""Temperatures of a checkpoint: `evaluate --temperature` fits them on validation, `predict --calibrated` uses them.

They are kept in `temperature.json` in the run's folder, with the step of the checkpoint they belong to.
"""

from __future__ import annotations

import json

from data_shards import TaskSpec
from trainer.checkpoints.checkpoint import Checkpoint
from trainer.checkpoints.find import open_checkpoint
from trainer.checkpoints.pieces import CheckpointError
from trainer.metrics.calibration import fit_temperature
from trainer.metrics.predictions import Predictions

FILE = "temperature.json"


def fit_temperatures(tasks: list[TaskSpec], predictions: Predictions) -> dict[str, float]:
    """One temperature per task; regression tasks have none."""
    return {
        task.name: fit_temperature(task, predictions.logits[task.name], predictions.targets[task.name])
        for task in tasks
        if task.kind != "regression"
    }


def scaled(predictions: Predictions, temperatures: dict[str, float]) -> Predictions:
    """The predictions with logits divided by their task's temperature."""
    logits = {name: value / temperatures.get(name, 1.0) for name, value in predictions.logits.items()}
    return Predictions(predictions.index_B, logits, predictions.targets)


def write_temperatures(checkpoint: Checkpoint, temperatures: dict[str, float]) -> None:
    """Store them in the run's folder."""
    stored = {"step": checkpoint.step, "temperatures": temperatures}
    checkpoint.fs.pipe_file(f"{checkpoint.run_dir}/{FILE}", json.dumps(stored, indent=1).encode())


def read_temperatures(checkpoint_url: str) -> dict[str, float]:
    """Temperatures of this checkpoint. Raises CheckpointError if none were fitted, or those of another step."""
    checkpoint = open_checkpoint(checkpoint_url)
    path = f"{checkpoint.run_dir}/{FILE}"
    remedy = f"fit them with python -m launch evaluate {checkpoint_url} --temperature"
    if not checkpoint.fs.exists(path):
        raise CheckpointError(f"{checkpoint.path} has no temperatures: {remedy}")
    stored = json.loads(checkpoint.fs.cat_file(path))
    if stored["step"] != checkpoint.step:
        raise CheckpointError(f"{path} holds temperatures of step {stored['step']}, not {checkpoint.step}: {remedy}")
    return {str(name): float(value) for name, value in stored["temperatures"].items()}
