"""The verb `baseline`: boosted trees and a linear model on whole-record statistics, each of them a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import fsspec

from data_shards import DataConfig, ManifestError, open_manifest
from data_shards.paths import absolute_url
from launch.cluster.environment import settle_paths
from launch.errors import UsageError
from launch.output.tables import people, print_json_line, print_table
from trainer.config.recipe import apply_overrides
from trainer.config.run_config import RunConfig
from trainer.run_folder import METRICS
from trainer.worker.provenance import source_tags


def learn_baseline(data: str, split: str, family: str, overrides: Sequence[str]) -> None:
    """As `make_baselines`; prints a table, then the result as one JSON line."""
    results = make_baselines(data, split, family, overrides)
    _show(results)
    print_json_line({"baselines": results, "data": absolute_url(data), "split": split})


def make_baselines(data: str, split: str, family: str, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Learn the families that are asked for (`both`, or one); returns the result of each.

    Raises:
        UsageError: the name is taken. ValueError: data that cannot be read, or that nothing can be learned from.
    """
    from trainer.baseline.learners.families import FAMILIES
    from trainer.baseline.run import read_tables, run_baseline

    url = absolute_url(data)
    try:
        manifest = open_manifest(url)
    except ManifestError as error:
        raise ManifestError(f"{error}; data sets are made with python -m launch pack") from None
    name = f"baseline-{manifest.schema.name}-{split}-{datetime.now():%Y%m%d-%H%M%S}"
    whole = apply_overrides(RunConfig(name=name, data=DataConfig(url=url, split=split)), overrides)
    configs = {kind: _of_family(whole, kind) for kind in FAMILIES if family in (kind, "both")}
    if not configs:
        raise UsageError(f"there is no family {family}; there are {', '.join(FAMILIES)} and both")
    for config in configs.values():
        _refuse_taken(config)
    with _progress() as told:
        tables = read_tables(manifest, whole.data, told)
    return [run_baseline(config, manifest, tables, kind, source_tags()) for kind, config in configs.items()]


def _of_family(config: RunConfig, family: str) -> RunConfig:
    """The run of one family, which its name ends with, with absolute paths."""
    return settle_paths(config.model_copy(update={"name": f"{config.name}-{family}"}))


def _refuse_taken(config: RunConfig) -> None:
    fs, root = fsspec.url_to_fs(config.run_dir)
    if fs.exists(f"{root}/{METRICS}"):
        raise UsageError(f"{config.run_dir} holds a run already, and a baseline is learned at once: give another name=")


@contextmanager
def _progress() -> Iterator[Mapping[str, Any]]:
    """A bar for each part that is read, on a terminal."""
    from rich.progress import Progress

    with Progress(console=people, disable=not people.is_terminal, transient=True) as bars:

        def bar(part: str) -> Any:
            task = bars.add_task(f"reading {part}", total=None, visible=False)
            return lambda done, total: bars.update(task, completed=done, total=total, visible=True)

        yield {part: bar(part) for part in ("codes", "train", "val", "test")}


def _show(results: Sequence[Mapping[str, Any]]) -> None:
    names = sorted({name for result in results for name in result["metrics"]})
    rows = [(name, *(result["metrics"].get(name) for result in results)) for name in names]
    print_table("baselines", ("metric", *(result["name"] for result in results)), rows)
    for result in results:
        for note in result["notes"]:
            people.print(f"{result['name']}: {note}", markup=False)
    places = " ".join(result["run_dir"] for result in results)
    people.print(f"next: python -m launch compare RUN {places}", markup=False)
