"""An ensemble as plain files, away from its members' runs: an export of each and what it counts; and how it is opened.

`model.json` is that of the first trained member, with `members` (a folder below, or a baseline's) and `weights`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import torch
from pydantic import TypeAdapter

from data_shards import Batch, TaskSpec
from data_shards.lease.lease import take
from data_shards.paths import absolute_url
from trainer.baseline.features.fill import rows
from trainer.baseline.features.table import Table
from trainer.baseline.stored import Baseline, read_baseline
from trainer.checkpoints.pieces import CheckpointError
from trainer.config.run_config import RunConfig
from trainer.ensemble.combine import combined
from trainer.ensemble.stored import Ensemble, is_ensemble, read_ensemble
from trainer.inference.export import export_model
from trainer.inference.portable.model import Answers, PortableModel
from trainer.inference.portable.registered import offered
from trainer.metrics.prediction_table import predictions_of, predictions_table
from trainer.run_folder import BASELINE, BASELINE_ARRAYS

FORMAT = "fleximoe-ensemble-model-1"
CODE = Path(__file__).with_name("mlflow_code.py")

logger = logging.getLogger(__name__)


def export_run(url: str, out_url: str, form: str = "safetensors") -> dict[str, Any]:
    """Write what a run, a checkpoint or an ensemble answers by. Returns what it is.

    Args:
        form: safetensors, or a graph as of `export_graph`.

    Raises:
        CheckpointError: as `export_model`; an ensemble of baselines alone; the folder holds another form, and what
            opens it could take either. NoGraphError: as `export_graph`; an ensemble. LeaseHeldError: another export is
            at work.
    """
    _refuse_other_form(out_url, form)
    if form == "safetensors":
        return export_ensemble(url, out_url) if is_ensemble(url) else export_model(url, out_url)
    from trainer.inference.portable.graph.export import export_graph
    from trainer.inference.portable.graph.model import NoGraphError

    if is_ensemble(url):
        raise NoGraphError(f"{url} is an ensemble, and each of its members is a graph of its own: export those")
    return export_graph(url, out_url, form)


def _refuse_other_form(out_url: str, form: str) -> None:
    from trainer.inference.portable.graph.export import FILES

    fs, root = fsspec.url_to_fs(absolute_url(out_url))
    for other, name in {"safetensors": "model.json", **FILES}.items():
        if other != form and fs.exists(f"{root}/{name}"):
            raise CheckpointError(
                f"{out_url} holds an export as {other} ({name}), and who opens a folder takes the one model that is in "
                "it: export to another folder"
            )


def export_ensemble(url: str, out_url: str) -> dict[str, Any]:
    """See `export_run`."""
    ensemble, out_url = read_ensemble(url), absolute_url(out_url)
    if all(member.baseline for member in ensemble.members):
        raise CheckpointError(f"{url} is an ensemble of baselines: only one with a trained member can be exported")
    fs, root = fsspec.url_to_fs(out_url)
    with take(out_url, "export of an ensemble", "export to another folder") as lease:
        reports: list[dict[str, Any]] = []
        for number, member in enumerate(ensemble.members):
            folder = f"{out_url}/{_folder(number)}"
            if member.baseline:
                _copied(member.url, folder)
            else:
                reports.append({**export_model(member.url, folder), "folder": folder})
        about = _about(reports[0]["folder"])
        about |= {"format": FORMAT, "checkpoint": absolute_url(url), **_described(ensemble)}
        about["name"] = ensemble.about["name"]
        about["calibration"] = None  # a member's is not that of all together
        lease.confirm()
        fs.pipe_file(f"{root}/model.json", json.dumps(about, indent=1).encode())
    sums = {key: sum(report[key] for report in reports) for key in ("parameters", "bytes")}
    return {"model": out_url, "checkpoint": absolute_url(url), "members": len(ensemble.members), **sums}


def open_export(url: str, device: torch.device | str = "cpu") -> PortableModel:
    """The model of an export, or the ensemble of one. Raises CheckpointError: see `PortableModel`."""
    fs, root = fsspec.url_to_fs(absolute_url(url))
    together = fs.exists(f"{root}/model.json") and _about(url).get("format") == FORMAT
    return PortableEnsemble(url, device) if together else PortableModel(url, device)


def write_registered_ensemble(url: str, out_url: str) -> str | None:
    """As `write_registered`, of an ensemble."""
    return offered(lambda: export_ensemble(url, out_url), lambda: open_export(out_url), out_url, CODE)


class PortableEnsemble(PortableModel):
    """Several models on the same records, and the weighted mean of what they say. Arguments as of `PortableModel`."""

    def __init__(self, url: str, device: torch.device | str = "cpu") -> None:
        about = _about(url)
        url = absolute_url(url).rstrip("/")
        folders = [(f"{url}/{_folder(number)}", own) for number, own in enumerate(about["members"])]
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
        members = [_of_baseline(own) if isinstance(own, Baseline) else own.answers() for own in self._members]

        def together(batch: Batch) -> pa.Table:
            said = [predictions_of(member(batch))[1] for member in members]
            return predictions_table(self.tasks, combined(self.tasks, said, self.about["weights"]), batch.keys)

        return together


def _of_baseline(baseline: Baseline) -> Callable[[Batch], pa.Table]:
    tasks = [model.task for model in baseline.models.values()]

    def said(batch: Batch) -> pa.Table:
        batch = batch.on_host()
        x_BX = rows(baseline.layout, batch)[:, baseline.column_X]
        table = Table(x_BX, batch.present_BM.numpy(), batch.index_B, batch.targets, batch.moment_B, {})
        return predictions_table(tasks, baseline.predictions(table), batch.keys)

    return said


def _folder(number: int) -> str:
    return f"members/{number}"


def _about(url: str) -> dict[str, Any]:
    fs, root = fsspec.url_to_fs(absolute_url(url))
    about: dict[str, Any] = json.loads(fs.cat_file(f"{root}/model.json"))
    return about


def _described(ensemble: Ensemble) -> dict[str, Any]:
    return {
        "members": [{"name": own.name, "baseline": own.baseline} for own in ensemble.members],
        "weights": {task: list(own) for task, own in ensemble.weights.items()},
        "answers": TypeAdapter(tuple[TaskSpec, ...]).dump_python(ensemble.tasks, mode="json"),
    }


def _copied(url: str, out_url: str) -> None:
    """A baseline's two files."""
    source, here = fsspec.url_to_fs(absolute_url(url))
    target, there = fsspec.url_to_fs(out_url)
    target.makedirs(there, exist_ok=True)
    for name in (BASELINE_ARRAYS, BASELINE):
        target.pipe_file(f"{there}/{name}", source.cat_file(f"{here}/{name}"))
