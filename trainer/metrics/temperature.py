"""Temperatures of a checkpoint: `evaluate --temperature` fits them on validation, `predict --calibrated` uses them.

They are kept in `temperature.json` in the run's folder, with the step of the checkpoint they belong to.
"""

from __future__ import annotations

from dataclasses import replace

from data_shards import TaskSpec
from trainer.checkpoints.checkpoint import Checkpoint
from trainer.checkpoints.pieces import CheckpointError
from trainer.metrics.calibration import fit_temperature, has_temperature
from trainer.metrics.predictions import Predictions
from trainer.run_folder import TEMPERATURE, read_json, write_json


def fit_temperatures(tasks: list[TaskSpec], predictions: Predictions) -> dict[str, float]:
    """One temperature per task that has a label and classes."""
    return {
        task.name: fit_temperature(task, predictions.logits[task.name], predictions.targets[task.name])
        for task in tasks
        if has_temperature(task) and not bool(predictions.targets[task.name].isnan().all())
    }


def scaled(predictions: Predictions, temperatures: dict[str, float]) -> Predictions:
    """The predictions with logits divided by their task's temperature."""
    logits = {name: value / temperatures.get(name, 1.0) for name, value in predictions.logits.items()}
    return replace(predictions, logits=logits)


def write_temperatures(checkpoint: Checkpoint, temperatures: dict[str, float]) -> None:
    """Store them in the run's folder."""
    stored = {"step": checkpoint.step, "temperatures": temperatures}
    write_json(checkpoint.run_dir, TEMPERATURE, stored)


def read_temperatures(checkpoint: Checkpoint) -> dict[str, float]:
    """Temperatures of this checkpoint. Raises CheckpointError if none were fitted, or those of another step."""
    remedy = f"fit them with python -m launch evaluate {checkpoint.url} --temperature"
    stored = read_json(checkpoint.run_dir, TEMPERATURE)
    if stored is None:
        raise CheckpointError(f"{checkpoint.path} has no temperatures: {remedy}")
    if stored["step"] != checkpoint.step:
        where = f"{checkpoint.run_dir}/{TEMPERATURE}"
        raise CheckpointError(f"{where} holds temperatures of step {stored['step']}, not {checkpoint.step}: {remedy}")
    return {str(name): float(value) for name, value in stored["temperatures"].items()}
