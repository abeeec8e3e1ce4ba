"""What is asked of a checkpoint, a baseline or an ensemble, so that any process can answer it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from launch.cluster.environment import settle_paths
from launch.errors import UsageError
from launch.runs.checks import check
from trainer.config.recipe import apply_overrides
from trainer.config.run_config import RunConfig

if TYPE_CHECKING:
    from trainer.checkpoints.checkpoint import Checkpoint
    from trainer.ensemble.answers import AnyRequest, BaselineRequest, EnsembleRequest
    from trainer.inference.request import Request

ONE = ("parallel.workers=1", "parallel.expert_parallel=1")


@dataclass(frozen=True)
class Asked:
    """Whatever answers. `data`: None = what it was trained on. `part`: None = every record. `sources`: of encoders."""

    data: str | None = None
    part: str | None = None
    overrides: tuple[str, ...] = ()
    explain: bool = False
    calibrated: bool = False
    embeddings: bool = False
    sources: dict[str, str] = field(default_factory=dict)


def request_of(url: str, asked: Asked) -> tuple[RunConfig, AnyRequest]:
    """The recipe that says where the data are and how many workers there are, and what each of them is asked.

    Args:
        url: folder of a run, a checkpoint, a baseline or an ensemble.

    Raises:
        UsageError: it cannot answer that. ValueError: wrong checkpoint or data.
    """
    from trainer.baseline.stored import is_baseline
    from trainer.checkpoints.find import open_checkpoint
    from trainer.ensemble.stored import is_ensemble

    if is_ensemble(url):
        return _ensemble(url, asked)
    if is_baseline(url):
        return _baseline(url, asked)
    opened = open_checkpoint(url)
    config, member = _config(opened, asked.data, asked.overrides)
    return config, _of_checkpoint(config, opened, member, asked)


def without_checkpoint(url: str) -> bool:
    """Whether what answers there is an ensemble or a baseline."""
    from trainer.baseline.stored import is_baseline
    from trainer.ensemble.stored import is_ensemble

    return is_ensemble(url) or is_baseline(url)


def _ensemble(url: str, asked: Asked) -> tuple[RunConfig, EnsembleRequest]:
    from trainer.ensemble.answers import EnsembleRequest
    from trainer.ensemble.stored import read_ensemble

    _plainly(url, "an ensemble", asked)
    ensemble = read_ensemble(url)
    found = [request_of(member.url, asked) for member in ensemble.members]
    members = tuple(request for _, request in found)
    return found[0][0], EnsembleRequest(members, ensemble.weights, ensemble.tasks)  # type: ignore[arg-type]


def _baseline(url: str, asked: Asked) -> tuple[RunConfig, BaselineRequest]:
    from data_shards import DataConfig
    from trainer.baseline.stored import read_baseline
    from trainer.ensemble.answers import BaselineRequest

    _plainly(url, "a baseline", asked)
    about = read_baseline(url).about
    data = DataConfig(url=asked.data or about["data_url"], split=about["split"])
    config = settle_paths(apply_overrides(RunConfig(name=about["name"], data=data), [*ONE, *asked.overrides]))
    return config, BaselineRequest(url, config.data, asked.part)


def _plainly(url: str, what: str, asked: Asked) -> None:
    of_one = {"--explain": asked.explain, "--calibrated": asked.calibrated, "--embeddings": asked.embeddings}
    for option, wanted in of_one.items():
        if wanted:
            raise UsageError(f"{url} is {what}, and {option} is of one trained model: give one of its members")


def _config(checkpoint: Checkpoint, data: str | None, overrides: Sequence[str]) -> tuple[RunConfig, str]:
    from trainer.checkpoints.evaluation_recipe import evaluation_config
    from trainer.inference.request import choose_data

    mixture = checkpoint.meta["config"]["data"].get("mixture")
    config = evaluation_config(checkpoint, None if mixture else data)
    config = settle_paths(apply_overrides(config, [*ONE, *overrides]))
    config, member = choose_data(config, checkpoint, data)
    check(config)
    return config, member


def _of_checkpoint(config: RunConfig, checkpoint: Checkpoint, member: str, asked: Asked) -> Request:
    from data_shards import open_manifest
    from trainer.inference.request import Request, model_tasks, needed_encoders
    from trainer.metrics.calibration import has_temperature
    from trainer.metrics.temperature import read_temperatures

    temperatures = read_temperatures(checkpoint) if asked.calibrated else {}
    manifest = open_manifest(config.data.url, config.data.storage_options)
    tasks = model_tasks(checkpoint, manifest, member)
    encoders = needed_encoders(checkpoint, manifest.schema, member, asked.sources)
    without = [task.name for task in tasks if has_temperature(task) and task.name not in temperatures]
    if asked.calibrated and without:
        raise UsageError(
            f"{checkpoint.url} has no temperature for {', '.join(without)}: part val had no label of it when "
            "temperatures were fitted; predict without --calibrated"
        )
    return Request(config, asked.part, member, asked.explain, temperatures, encoders, asked.embeddings)
