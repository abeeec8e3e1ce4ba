"""Names and shapes of what a run leaves behind, for those who write it and those who read it.

A run's folder (`config.run_dir`, a path or a URL) holds `checkpoints/`, and the files named here; the same names, where
they are artifacts, are those of its MLflow run. Nothing else may spell them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from data_shards.paths import absolute_path, is_local

# Written by the job.
MLFLOW_RUN = "mlflow_run.json"  # which MLflow run this is: `MLflowRun`
METRICS = "metrics.jsonl"  # one object a line: `params`, `step` with `metrics`, `dataset`, `model`, `tags`, `status`
RESULT = "result.json"  # what the command printed as its last line: `Result`
CHECKPOINTS = "checkpoints"
ADAPTER = "adapter"  # a folder, and the stem of the two files in it
TEMPERATURE = "temperature.json"
BASELINE = "baseline.json"  # of a baseline: what it is, and beside it its arrays
BASELINE_ARRAYS = "baseline.safetensors"
ENSEMBLE = "ensemble.json"  # of several runs as one model: which, and what each counts
REGISTERED = "registered"  # the export that a version of a registered model is made of, with these two files:
MLFLOW_CODE, MLFLOW_FORM = "mlflow_code.py", "mlflow_form.json"
SPOOL = "mlflow_spool"  # what MLflow could not take yet
# Written by the job, and artifacts of its MLflow run.
CONFIG = "config.json"
RECIPE = "recipe.yaml"
REQUIREMENTS = "requirements.txt"
STRETCHES = "predictions"  # of a part too large for one file: a folder of its name, not in MLflow
TEST_PREDICTIONS = f"{STRETCHES}/test.parquet"
MISSING_CURVE = "missing_curve.json"
MISSING_FIGURE = "figures/missing_curve.png"
ROUTING = "routing/expert_by_modality.json"
ROUTING_FIGURE = "figures/expert_by_modality.png"
PROMPT_SITES, PROMPT_ENTROPY = "mope/expert_by_site.json", "mope/routing_entropy.json"
# Written by a sweep: into its own folder, and into those of its trials.
SWEEP = "sweep.json"
SWEEP_RESULTS = "sweep_results.json"
PRUNED = "pruned.json"
FAILED = "failed.json"


class MLflowRun(TypedDict):
    """Which run of which MLflow a folder belongs to."""

    uri: str
    run_id: str


class Result(TypedDict, total=False):
    """What a job that trains returns: `status` is finished or stopped, `metrics` are those of the test part.

    `mlflow` is `complete`, `off`, or says in words what MLflow has not, and where that waits.
    """

    run_id: str | None
    mlflow: str
    name: str
    status: str
    step: int
    samples: int
    metrics: dict[str, float]
    checkpoint: str
    adapter: str
    seconds: float


def _opened(run_dir: str) -> tuple[Any, str]:
    import fsspec  # a folder of this machine is read without it

    fs, root = fsspec.url_to_fs(run_dir)
    return fs, str(root)


def read_bytes(folder: str, name: str) -> bytes:
    """A file of a folder, a path or a URL. Raises OSError, of a file that is not there FileNotFoundError."""
    if is_local(folder):
        return (absolute_path(folder) / name).read_bytes()
    fs, root = _opened(folder)
    fs.invalidate_cache(root)
    data: bytes = fs.cat_file(f"{root}/{name}")
    return data


def exists(folder: str, name: str) -> bool:
    """Whether a folder, a path or a URL, has a file."""
    if is_local(folder):
        return (absolute_path(folder) / name).exists()
    fs, root = _opened(folder)
    fs.invalidate_cache(root)
    return bool(fs.exists(f"{root}/{name}"))


def read_json(run_dir: str, name: str) -> Any:
    """A JSON file of a run's folder; None if it is not there (yet)."""
    try:
        return json.loads(read_bytes(run_dir, name))
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_json(run_dir: str, name: str, value: Any) -> None:
    """Write a JSON file into a run's folder, which is made if it is not there."""
    write_bytes(run_dir, name, json.dumps(value, indent=1).encode())


def write_bytes(folder: str, name: str, data: bytes) -> None:
    """Write a file into a folder, which is made if it is not there."""
    fs, root = _opened(folder)
    fs.makedirs(root, exist_ok=True)
    fs.pipe_file(f"{root}/{name}", data)


def remove(run_dir: str, name: str) -> None:
    """Take a file out of a run's folder, if it is there."""
    fs, root = _opened(run_dir)
    if fs.exists(f"{root}/{name}"):
        fs.rm_file(f"{root}/{name}")


def remove_below(run_dir: str, name: str) -> None:
    """Take the files of a folder out of a run's folder, if there are any."""
    fs, root = _opened(run_dir)
    fs.invalidate_cache(root)
    for path in fs.find(f"{root}/{name}"):
        fs.rm_file(path)


def put_file(run_dir: str, name: str, path: Path) -> None:
    """Copy a local file into a run's folder."""
    fs, root = _opened(run_dir)
    target = f"{root}/{name}"
    fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
    fs.put_file(str(path), target)


def metric_lines(run_dir: str) -> Iterator[dict[str, Any]]:
    """Whole lines of a run's metrics, as far as they are written."""
    fs, root = _opened(run_dir)
    fs.invalidate_cache(root)
    if fs.exists(f"{root}/{METRICS}"):
        for line in fs.cat_file(f"{root}/{METRICS}").decode().split("\n")[:-1]:  # the last one may be half written
            yield json.loads(line)


def stored_result(run_dir: str) -> Result | None:
    """What a finished run wrote; None if it has not finished."""
    stored: Result | None = read_json(run_dir, RESULT)
    return stored if stored is not None and stored["status"] == "finished" else None


def stored_run(run_dir: str) -> MLflowRun | None:
    """The MLflow run of a folder; None if it has none."""
    stored: MLflowRun | None = read_json(run_dir, MLFLOW_RUN)
    return stored


def stored_run_id(run_dir: str, uri: str | None) -> str | None:
    """The id of a folder's run in the MLflow at `uri`; None if it has none there."""
    stored = stored_run(run_dir)
    return stored["run_id"] if stored is not None and stored["uri"] == (uri or "") else None


def run_of(run_dir: str, known: str | None) -> str | None:
    """The MLflow run that wrote a checkpoint: the one that it knows, or the one of its run's folder.

    A run that was started without a driver has its first checkpoints before the server has named it.
    """
    stored = stored_run(run_dir) if known is None else None
    return known if stored is None else stored["run_id"]
