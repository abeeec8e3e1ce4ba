"""The verb `ensemble`: several runs as one model, a run of its own that is predicted, evaluated and compared."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import fsspec

from data_shards import DataConfig, open_manifest
from data_shards.paths import absolute_url
from launch.cluster.environment import settle_paths
from launch.errors import UsageError
from launch.output.tables import people, print_json_line, print_table
from launch.runs.requests import Asked, request_of
from trainer.config.recipe import apply_overrides
from trainer.config.run_config import RunConfig
from trainer.run_folder import METRICS, SWEEP, SWEEP_RESULTS, read_json
from trainer.worker.provenance import source_tags

if TYPE_CHECKING:
    from trainer.ensemble.answers import AnyRequest
    from trainer.ensemble.stored import Member

_OVERRIDE = re.compile(r"[a-z][a-z0-9_.]*=")


def make_ensemble(runs: Sequence[str], blend: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Make a run of these runs. Returns its result, see `run_ensemble`.

    Args:
        runs: folders of runs, checkpoints or sweeps; of a sweep the runs of its best variant.
        blend: a baseline, or any other run, that counts by a weight that validation chooses.

    Raises:
        UsageError: fewer than two members, the name is taken. ValueError: members that do not belong together.
    """
    from trainer.ensemble.run import run_ensemble
    from trainer.worker.context import default_device

    members = [member for run in runs for member in _members(run)]
    second = None if blend is None else _one_member(blend)
    everyone = [*members, *([] if second is None else [second])]
    if len(everyone) < 2:
        raise UsageError("an ensemble has two members at least: name several runs, a sweep, or --blend BASELINE")
    _refuse_twice(everyone)
    config = _config(everyone, overrides)
    manifest = open_manifest(config.data.url, config.data.storage_options)

    def requests(member: Member, part: str) -> AnyRequest:
        return request_of(member.url, Asked(config.data.url, part))[1]

    return run_ensemble(config, manifest, members, second, requests, source_tags(), default_device(0))


def show_ensemble(words: Sequence[str], blend: str | None) -> None:
    """Make it of runs and section.key=value; print a table, then the result as one JSON line. As `make_ensemble`."""
    overrides = [word for word in words if _OVERRIDE.match(word)]
    result = make_ensemble([word for word in words if word not in overrides], blend, overrides)
    print_table(f"ensemble {result['name']}", ("metric", "value"), sorted(result["metrics"].items()))
    for task, chosen in result["chosen"].items():
        weight = result["weights"][task][-1]
        people.print(f"{task}: {result['members'][-1]} counts {weight:.2f}, {_why(weight, chosen)}", markup=False)
    people.print(f"next: python -m launch compare RUN {result['run_dir']}", markup=False)
    print_json_line(result)


def _why(weight: float, chosen: Mapping[str, Any]) -> str:
    if weight == chosen["best"]:
        return f"the best by {chosen['metric']}"
    return f"nearest to one half of those that {chosen['metric']} does not tell from the best, {chosen['best']:.2f}"


def measure_together(
    url: str, data: str | None, part: str, drop: Sequence[str], overrides: Sequence[str], **wishes: bool
) -> dict[str, Any]:
    """Metrics of an ensemble or a baseline, as `evaluate` gives those of a checkpoint.

    Raises UsageError: more is asked than such can say. ValueError: data that do not fit.
    """
    from trainer.ensemble.run import measures, part_predictions
    from trainer.worker.context import default_device

    more = [name.replace("_", "-") for name, wanted in {"drop": bool(drop), **wishes}.items() if wanted]
    if more:
        raise UsageError(f"{url} is no single trained model, and --{more[0]} is of one: evaluate its members")
    asked = Asked(None if data is None else absolute_url(data), part, tuple(overrides))
    tasks, said = part_predictions(request_of(url, asked)[1], default_device(0))
    metrics = measures(tasks, said, part)
    return {"checkpoint": url, "status": "finished", "part": part, "drop": [], "metrics": metrics, "samples": len(said)}


def _members(run: str) -> list[Member]:
    """A run, or those of a sweep's best variant."""
    url = absolute_url(run)
    if read_json(url, SWEEP) is None:
        return [_one_member(run)]
    results = read_json(url, SWEEP_RESULTS)
    if results is None or not results["best"]:
        raise UsageError(f"sweep {run} has no variant that has finished with all its seeds: run it to its end first")
    best = results["best"]["variant"]
    return [_one_member(row["checkpoint"]) for row in results["trials"] if row["variant"] == best]


def _one_member(run: str) -> Member:
    from trainer.baseline.stored import is_baseline, read_baseline
    from trainer.checkpoints.find import open_checkpoint
    from trainer.ensemble.stored import Member, is_ensemble

    url = absolute_url(run)
    if is_ensemble(url):
        raise UsageError(f"{run} is an ensemble itself: name its members instead")
    if is_baseline(url):
        return Member(url, read_baseline(url).about["name"], baseline=True)
    checkpoint = open_checkpoint(url)
    return Member(checkpoint.url, checkpoint.meta["config"]["name"])


def _refuse_twice(members: Sequence[Member]) -> None:
    urls = [member.url for member in members]
    twice = [member.name for number, member in enumerate(members) if member.url in urls[:number]]
    if twice:
        raise UsageError(f"{', '.join(twice)} is named twice; each member counts once")


def _config(members: Sequence[Member], overrides: Sequence[str]) -> RunConfig:
    """The ensemble's run: name, data, storage, tracking.

    Raises UsageError: members of other data or splits, whose validation parts others may have learned from.
    """
    origins = [_origin(member) for member in members]
    for member, origin in zip(members, origins, strict=True):
        for what, own, first in zip(("split", "data of digest"), origin[1:], origins[0][1:], strict=True):
            if own != first:
                raise UsageError(
                    f"{member.name} learned from {what} {own}, {members[0].name} from {first}: one would be "
                    "measured on what another has learned; take runs of one split of one data set"
                )
    url, split, _ = origins[0]
    name = f"ensemble-{members[0].name}-{len(members)}-{datetime.now():%Y%m%d-%H%M%S}"
    config = settle_paths(apply_overrides(RunConfig(name=name, data=DataConfig(url=url, split=split)), overrides))
    fs, root = fsspec.url_to_fs(config.run_dir)
    if fs.exists(f"{root}/{METRICS}"):
        raise UsageError(f"{config.run_dir} holds a run already, and an ensemble is made at once: give another name=")
    return config


def _origin(member: Member) -> tuple[str, str, str]:
    """(URL, split, digest) of the data that a member learned from."""
    from trainer.baseline.stored import read_baseline
    from trainer.checkpoints.find import open_checkpoint

    if member.baseline:
        about = read_baseline(member.url).about
        return about["data_url"], about["split"], about["data_digest"]
    meta = open_checkpoint(member.url).meta
    data = meta["config"]["data"]
    if data.get("mixture"):
        raise UsageError(f"{member.name} was trained on a mixture, and an ensemble is of runs of one data set")
    return data["url"], data["split"], meta["data_digest"]
