"""What an ensemble's run answers by, as plain files away from its members' runs: an export of each, and what it counts.

Here is also the choice of what is exported: a run, a checkpoint or an ensemble, in which form.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from data_shards import TaskSpec
from data_shards.lease.lease import take
from data_shards.paths import absolute_url
from trainer.checkpoints.pieces import CheckpointError
from trainer.ensemble.portable import FORMAT, member_folder, open_export
from trainer.ensemble.stored import Ensemble, is_ensemble, read_ensemble
from trainer.inference.export import export_model
from trainer.inference.exported import ABOUT
from trainer.inference.portable.registered import offered
from trainer.run_folder import BASELINE, BASELINE_ARRAYS, exists, read_bytes, write_bytes

CODE = Path(__file__).with_name("mlflow_code.py")


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

    out_url = absolute_url(out_url)
    for other, name in {"safetensors": ABOUT, **FILES}.items():
        if other != form and exists(out_url, name):
            raise CheckpointError(
                f"{out_url} holds an export as {other} ({name}), and who opens a folder takes the one model that is in "
                "it: export to another folder"
            )


def export_ensemble(url: str, out_url: str) -> dict[str, Any]:
    """See `export_run`."""
    ensemble, out_url = read_ensemble(url), absolute_url(out_url)
    if all(member.baseline for member in ensemble.members):
        raise CheckpointError(f"{url} is an ensemble of baselines: only one with a trained member can be exported")
    with take(out_url, "export of an ensemble", "export to another folder") as lease:
        reports: list[dict[str, Any]] = []
        for number, member in enumerate(ensemble.members):
            folder = f"{out_url}/{member_folder(number)}"
            if member.baseline:
                _copied(member.url, folder)
            else:
                reports.append({**export_model(member.url, folder), "folder": folder})
        about = json.loads(read_bytes(reports[0]["folder"], ABOUT))
        about |= {"format": FORMAT, "checkpoint": absolute_url(url), **_described(ensemble)}
        about["name"] = ensemble.about["name"]
        about["calibration"] = None  # a member's is not that of all together
        lease.confirm()
        write_bytes(out_url, ABOUT, json.dumps(about, indent=1).encode())
    sums = {key: sum(report[key] for report in reports) for key in ("parameters", "bytes")}
    return {"model": out_url, "checkpoint": absolute_url(url), "members": len(ensemble.members), **sums}


def write_registered_ensemble(url: str, out_url: str) -> str | None:
    """As `write_registered`, of an ensemble."""
    return offered(lambda: export_ensemble(url, out_url), lambda: open_export(out_url), out_url, CODE)


def _described(ensemble: Ensemble) -> dict[str, Any]:
    return {
        "members": [{"name": own.name, "baseline": own.baseline} for own in ensemble.members],
        "weights": {task: list(own) for task, own in ensemble.weights.items()},
        "answers": TypeAdapter(tuple[TaskSpec, ...]).dump_python(ensemble.tasks, mode="json"),
    }


def _copied(url: str, out_url: str) -> None:
    """A baseline's two files."""
    for name in (BASELINE_ARRAYS, BASELINE):
        write_bytes(out_url, name, read_bytes(absolute_url(url), name))
