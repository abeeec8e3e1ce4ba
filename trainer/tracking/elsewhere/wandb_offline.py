"""The sink for Weights & Biases, offline: files in the run's folder. The only place that imports wandb.

    wandb sync runs/NAME/wandb/offline-run-*      sends them, when somebody wants that

Nothing is sent, and no account is asked for. A start that goes on from a checkpoint writes an offline run of its own
under the same id, so that sending them one after the other makes one run; `step` is the optimiser's.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from data_shards.lease.lease import Guard
from trainer.tracking.elsewhere.guarded import GuardedSink, folder_for, name_of
from trainer.tracking.operations import File, Operation


class WandbSink(GuardedSink):
    """Raises ValueError: wandb is not installed, or the run's folder is not on this machine."""

    def __init__(self, project: str, run_name: str, run_dir: str, guard: Guard) -> None:
        super().__init__(guard)
        folder = folder_for(run_dir, "wandb", "tracking.wandb", "wandb").parent
        folder.mkdir(parents=True, exist_ok=True)
        import wandb

        quiet = wandb.Settings(
            mode="offline",
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            x_disable_stats=True,
            x_disable_meta=True,
        )
        number = hashlib.sha256(f"{folder.absolute()}".encode()).hexdigest()[:16]
        self._run: Any = wandb.init(
            project=project, name=run_name, id=number, dir=str(folder), resume="allow", reinit="create_new",
            settings=quiet,
        )  # fmt: skip
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._failed = False

    def rewind(self, step: int) -> None:
        """The same steps are going to be logged again, in an offline run of this start's own."""

    def flush(self, timeout_s: float) -> None:
        """Its own process writes as it comes."""

    def _write(self, operation: Operation) -> None:
        match operation["op"]:
            case "metrics":
                self._run.log({**operation["values"], "step": operation["step"]})
            case "params":
                self._run.config.update(operation["values"], allow_val_change=True)
            case "tags":
                self._run.config.update({"tags": operation["values"]}, allow_val_change=True)
            case "dataset" | "model":
                told = {name: value for name, value in operation.items() if name not in ("op", "time", "export")}
                self._run.config.update({operation["op"]: json.loads(json.dumps(told))}, allow_val_change=True)
            case "status":
                self._failed = operation["status"] != "FINISHED"

    def _write_file(self, file: File) -> None:
        kept = Path(self._run.dir) / name_of(file)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file["path"], kept)
        self._run.save(str(kept), base_path=self._run.dir, policy="end")

    def _close(self) -> None:
        self._run.finish(exit_code=int(self._failed))
