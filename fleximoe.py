"""Multimodal mixture-of-experts models for records with missing modalities and irregular times, from Python.

    import fleximoe

    data = fleximoe.pack(records=stays, vitals=events, notes=notes, tasks="died", out="data/ward")
    run = fleximoe.fit(data, training={"epochs": 20}, name="first")
    run.metrics, run.predict(new_stays, vitals=new_events), run.missing_curve()

Everything here is what the command `fleximoe` (the same as `python -m launch`) does, by the same code; nothing heavy is
loaded before it is used. Errors are `FleximoeError`s, each one sentence. More: docs/python.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_shards import Codes, DatasetSchema, ModalitySpec, Objects, Record, Series, TaskSpec
    from data_shards.sources.base import Source
    from launch.api.compared import Compared
    from launch.api.data import Data
    from launch.api.errors import FleximoeError, InputError, RunError
    from launch.api.run import Run

__all__ = [
    "Codes",
    "Compared",
    "Data",
    "DatasetSchema",
    "FleximoeError",
    "InputError",
    "ModalitySpec",
    "Objects",
    "Record",
    "Run",
    "RunError",
    "Series",
    "Source",
    "TaskSpec",
    "baseline",
    "compare",
    "ensemble",
    "fit",
    "load",
    "open_run",
    "pack",
]

_HOME = {
    "Compared": "launch.api.compared",
    "Data": "launch.api.data",
    "FleximoeError": "launch.api.errors",
    "InputError": "launch.api.errors",
    "RunError": "launch.api.errors",
    "Run": "launch.api.run",
    "Source": "data_shards.sources.base",
    **dict.fromkeys(("Codes", "Objects", "Record", "Series"), "data_shards.records.record"),
    **dict.fromkeys(("DatasetSchema", "ModalitySpec", "TaskSpec"), "data_shards.records.schema"),
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'fleximoe' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)


def pack(
    source: str | PathLike[str] | Source | Iterable[Record] | None = None,
    out: str | PathLike[str] | None = None,
    *,
    schema: DatasetSchema | None = None,
    options: Mapping[str, Any] | None = None,
    tasks: str | Sequence[str] | Mapping[str, Any] | None = None,
    modalities: Mapping[str, Any] | None = None,
    key: str | None = None,
    group: str | None = None,
    split: Mapping[str, Any] | None = None,
    name: str | None = None,
    workers: int = 1,
    shard_mb: int = 64,
    overwrite: bool = False,
    append: bool = False,
    **frames: Any,
) -> Data:
    """Turn data into shards, once; what comes back is what `fit` takes.

    Args:
        source: a source by name (`"digits"`, with `options`), a mapping file (`"mapping.yaml"`), a `Source`, or any
            iterable of `Record`, with `schema`; they are held in memory. None: data frames.
        out: folder or URL of the new data set.
        schema: of records: their modalities and tasks.
        options: of a source by name, e.g. `{"records": 200}`.
        frames: data frames (pandas, polars, pyarrow) by name. `records` has a row a record; any other, say `vitals`,
            has rows that name their record in a column of the same name. What columns mean is guessed
            (`Data.guesses` says what), and everything can be said in the words of a mapping file:
        tasks: what is to be predicted: a column of the records, several, or sections such as
            `{"died": {"kind": "binary", "column": "outcome", "classes": ["home", "expired"]}}`. Needed with frames.
        modalities: name -> section, e.g. `{"vitals": {"kind": "series", "file": "vitals", "time": "hour", "columns":
            ["HR"]}}`, with the name of a frame as `file`; None leaves out a guessed one. What a section uses is not
            guessed any more.
        key: column that names the record in all frames; default: guessed, or, where there is but one frame, its rows
            are numbered. group: column that says which records belong together, e.g. a patient.
        split: shares, `{"train": 0.8, "val": 0.1, "test": 0.1}` (the default), or a mapping's section.
        name: of the data set; default: the last part of `out`.
        workers: processes that read and encode; a script that takes more than 1 needs `if __name__ == "__main__":`.
        shard_mb: size at which a shard is closed, in MiB. overwrite: replace a data set that is there.
        append: add these records to the data set that is there, as its next version.

    Raises:
        InputError: a record, column or entry that does not fit; a data set that is there. RunError: another pack is at
            work there, or the bytes could not be stored.
    """
    from launch.api.data import pack as pack_data
    from launch.api.errors import speaking

    guided: dict[str, Any] = {
        "tasks": tasks,
        "modalities": modalities,
        "key": key,
        "group": group,
        "split": split,
        "name": name,
    }
    guided |= {"workers": workers, "shard_mb": shard_mb, "overwrite": overwrite, "append": append}
    return speaking(pack_data)(source, out, frames, schema=schema, options=options, **guided)


def fit(
    data: Data | str | PathLike[str] | None = None,
    /,
    recipe: str | PathLike[str] | Mapping[str, Any] | None = None,
    *,
    progress: bool = True,
    debug: bool = False,
    **overrides: Any,
) -> Run:
    """Train a model in a process of its own, without Ray; with `parallel={"workers": N}` by N workers on Ray.

    An interrupt (Ctrl-C, the stop button) writes a checkpoint first; the same call with the same `name` goes on from
    there, and one with more `training.epochs` continues a run that has finished.

    Args:
        data: what `pack` returned, or the folder or URL of packed data; None where the recipe names them.
        recipe: name of a shipped one, a YAML file, or a dict like one; None: the defaults (docs/recipe_keys.md).
        progress: show how far it is. debug: show stack traces, and what libraries log.
        overrides: sections of the recipe, `training={"epochs": 5}, model={"moe": {"experts": 16}}, name="wide"`;
            `**{"training.epochs": 5}` is the same. `data=` as a dict is the section of that name.

    Raises:
        InputError: a recipe that is wrong or does not fit the data. RunError: the run failed, was stopped, or another
            process is at work on it.
    """
    from launch.api.errors import speaking
    from launch.api.fit import fit as fit_data

    return speaking(fit_data)(data, recipe, progress, debug, overrides)


def open_run(run: str | PathLike[str], *, storage: str = "runs", mlflow: str | None = None) -> Run:
    """A run that is there: by its folder or URL, its name in `storage`, or its id or name in MLflow.

    Args:
        mlflow: tracking URI; default: MLFLOW_TRACKING_URI, else `mlflow.db` of the working folder.

    Raises:
        InputError: there is no such run.
    """
    from launch.api.errors import speaking
    from launch.api.run import open_run as find

    return speaking(find)(str(run), storage, mlflow)


def load(path: str | PathLike[str]) -> Any:
    """An exported model: of `checkpoint export`, something that takes plain records; with `--format pt2` or `onnx`, a
    graph.

    A graph needs torch alone, or onnxruntime alone, on a machine without anything else of this code's requirements:
    `load(path)(tensors)` gives logits by task. A safetensors export, also that of an ensemble, needs torch, numpy,
    safetensors and pydantic for `.answer([{MODALITY: VALUE}])`, a list of dicts; `.predict(.records(...))` gives a
    table of pyarrow, `.rows(...)` a data frame, and `.example` is a record (docs/serving.md).

    Raises:
        ValueError: there is no export, or onnxruntime is not installed.
    """
    from launch.api.loaded import load as load_export

    return load_export(str(path))


def compare(
    runs: Sequence[Run | str], *, experiment: str | None = None, metric: str | None = None, mlflow: str | None = None
) -> Compared:
    """Runs side by side: are they better than each other, or is it chance? By what MLflow keeps of them.

    Args:
        runs: runs, their folders, or their ids or names in MLflow. experiment: of MLflow, all of its runs, too.
        metric: that ranks them, e.g. "auroc"; default: the usual one of their task.

    Raises:
        InputError: a run that cannot be found, or that has no test metrics in common with the others.
    """
    from launch.api.compared import compare as compare_all
    from launch.api.errors import speaking

    return speaking(compare_all)(runs, experiment, metric, mlflow)


def ensemble(
    runs: Sequence[Run | str | PathLike[str]], *, blend: Run | str | PathLike[str] | None = None, **overrides: Any
) -> Run:
    """Several runs as one model: the mean of their chances, as a run that predicts and is compared like any other.

    Args:
        runs: runs or their folders, of one split of one data set; of a sweep's folder the seeds of its best variant.
        blend: a baseline or another run that counts by a weight, chosen on validation for each task.
        overrides: `name="five"`, `training={"storage": ...}`, `tracking={"mlflow": False}`.

    Raises:
        InputError: fewer than two members, members of other data, or a name that is taken.
    """
    from launch.api.errors import speaking
    from launch.api.fit import ensemble as together

    return speaking(together)(runs, blend, overrides)


def baseline(
    data: Data | str | PathLike[str], *, family: str = "trees", split: str = "default", **overrides: Any
) -> Run:
    """Boosted trees or a linear model on whole-record statistics: what a model has to beat.

    Args:
        data: what `pack` returned, or the folder or URL of packed data. family: "trees" or "linear".
        overrides: as of `ensemble`.

    Raises:
        InputError: nothing to learn from, or a name that is taken.
    """
    from launch.api.errors import speaking
    from launch.api.fit import baseline as learned

    return speaking(learned)(data, family, split, overrides)
