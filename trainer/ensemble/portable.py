"""An exported ensemble, opened: away from its members' runs, and as plain records ask for it.

`model.json` is that of the first trained member, with `members` (a folder below, or a baseline's) and `weights`.
"""

from __future__ import annotations

import json

import torch
from pydantic import TypeAdapter

from data_shards import Batch, TaskSpec
from data_shards.paths import absolute_url
from trainer.baseline.features.fill import rows
from trainer.baseline.features.table import Table
from trainer.baseline.stored import Baseline, read_baseline
from trainer.config.run_config import RunConfig
from trainer.ensemble.combine import combined
from trainer.inference.exported import ABOUT
from trainer.inference.portable.model import Answers, PortableModel
from trainer.metrics.predictions import Predictions
from trainer.run_folder import read_bytes, read_json

FORMAT = "fleximoe-ensemble-model-1"


def open_export(url: str, device: torch.device | str = "cpu") -> PortableModel:
    """The model of an export, or the ensemble of one. Raises CheckpointError: see `PortableModel`."""
    together = (read_json(url, ABOUT) or {}).get("format") == FORMAT
    return PortableEnsemble(url, device) if together else PortableModel(url, device)


class PortableEnsemble(PortableModel):
    """Several models on the same records, and the weighted mean of what they say. Arguments as of `PortableModel`."""

    def __init__(self, url: str, device: torch.device | str = "cpu") -> None:
        about = json.loads(read_bytes(url, ABOUT))
        url = absolute_url(url).rstrip("/")
        folders = [(f"{url}/{member_folder(number)}", own) for number, own in enumerate(about["members"])]
        self._members: list[PortableModel | Baseline] = [
            read_baseline(folder) if own["baseline"] else PortableModel(folder, device) for folder, own in folders
        ]
        first = next(folder for folder, own in folders if not own["baseline"])
        self.opened(first, about, RunConfig.of(about["config"]), device)
        self.url, self.tasks = url, TypeAdapter(list[TaskSpec]).validate_python(about["answers"])

    def answers(self, explain: bool = False, embeddings: bool = False) -> Answers:
        """See there. Raises ValueError: what only one model can say."""
        if explain or embeddings:
            what = "explained" if explain else "embedded"
            raise ValueError(
                f"{self.url} is an ensemble, and a record is {what} by one model: export one of its members"
            )
        from trainer.metrics.prediction_table import predictions_table  # of pyarrow: `answer` needs none

        return lambda batch: predictions_table(self.tasks, self.predictions(batch), batch.keys)

    def predictions(self, batch: Batch) -> Predictions:
        """See there."""
        said = [
            _of_baseline(own, batch) if isinstance(own, Baseline) else own.predictions(batch) for own in self._members
        ]
        return combined(self.tasks, said, self.about["weights"])


def _of_baseline(baseline: Baseline, batch: Batch) -> Predictions:
    batch = batch.on_host()
    x_BX = rows(baseline.layout, batch)[:, baseline.column_X]
    return baseline.predictions(Table(x_BX, batch.present_BM.numpy(), batch.index_B, batch.targets, batch.moment_B, {}))


def member_folder(number: int) -> str:
    """Below the export's folder."""
    return f"members/{number}"
