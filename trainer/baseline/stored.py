"""A baseline as two files of its run's folder: what it is, and its arrays. No pickle.

Shapes: B samples.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from data_shards import DatasetSchema
from data_shards.paths import absolute_url
from trainer.baseline.features.layout import Layout
from trainer.baseline.features.table import Table
from trainer.baseline.learners.families import Family
from trainer.baseline.learners.task_model import TaskModel
from trainer.metrics.predictions import Predictions
from trainer.run_folder import BASELINE, BASELINE_ARRAYS, exists, read_bytes, read_json, write_bytes, write_json

FORMAT = "fleximoe-baseline-1"


@dataclass
class Baseline:
    """Models of one family, one a task, and the columns that they read.

    Attributes:
        column_X: int64, the columns of the layout that the models read.
        about: `name` of the run, `split`, `data_digest`, `data_url`.
    """

    family: Family
    layout: Layout
    column_X: np.ndarray
    models: dict[str, TaskModel]
    about: dict[str, Any] = field(default_factory=dict)

    def predictions(self, table: Table) -> Predictions:
        """What it says of each sample; the table has the columns that the models read."""
        logits = {name: model.logits(table.x_BX) for name, model in self.models.items()}
        targets = {name: table.targets[name] for name in self.models}
        return Predictions(table.index_B, logits, targets, {}, table.skipped, table.moment_B)


def write_baseline(run_dir: str, baseline: Baseline) -> None:
    """Both files; the description last."""
    arrays = {f"{task}/{name}": a for task, model in baseline.models.items() for name, a in model.arrays().items()}
    data = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    write_bytes(run_dir, BASELINE_ARRAYS, data)
    about = {
        "format": FORMAT,
        "family": baseline.family,
        **baseline.about,
        "schema": json.loads(baseline.layout.schema.to_json()),
        "columns": baseline.column_X.tolist(),
        "codes": {name: list(codes) for name, codes in baseline.layout.codes.items()},
        "tasks": {name: model.described() for name, model in baseline.models.items()},
    }
    write_json(run_dir, BASELINE, about)


def is_baseline(url: str) -> bool:
    """Whether there is a baseline in a folder."""
    return exists(absolute_url(url), BASELINE)


def read_baseline(url: str) -> Baseline:
    """Raises ValueError: no baseline is there, it is damaged, or of another format."""
    run_dir = absolute_url(url)
    about = read_json(run_dir, BASELINE)
    if about is None:
        raise ValueError(f"{url} holds no baseline: make one with python -m launch baseline DATA")
    if about.get("format") != FORMAT:
        raise ValueError(f"{url} has format {about.get('format')!r}; this version reads {FORMAT!r}")
    try:
        arrays = safetensors.numpy.load(read_bytes(run_dir, BASELINE_ARRAYS))
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{url}/{BASELINE_ARRAYS} cannot be read: {error}") from None
    schema = DatasetSchema.from_json(json.dumps(about["schema"]))
    models = {}
    for name, described in about["tasks"].items():
        own = {key.removeprefix(f"{name}/"): a for key, a in arrays.items() if key.startswith(f"{name}/")}
        models[name] = TaskModel.of(schema.task(name), described, own)
    codes = {name: tuple(numbers) for name, numbers in about["codes"].items()}
    kept = {key: about[key] for key in ("name", "split", "data_digest", "data_url")}
    column_X = np.array(about["columns"], np.int64)
    return Baseline(about["family"], Layout(schema, codes), column_X, models, kept)
