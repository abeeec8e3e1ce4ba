"""Where a recipe's paths lead: local ones made absolute, and those refused that a submitted job would lose."""

from __future__ import annotations

import os
import re
from pathlib import Path

from trainer.config.errors import RecipeError
from trainer.config.mope import MopeConfig
from trainer.config.run_config import RunConfig
from trainer.run_folder import SPOOL


def refuse_relative_paths(config: RunConfig) -> None:
    """Raise RecipeError if data or storage are relative: a submitted job works in a temporary copy of the folder,
    which holds no data and vanishes with everything written to it."""
    places = {f"data.mixture.{name}.url": entry.url for name, entry in config.data.mixture.items()}
    places |= {"data.url": config.data.url} if config.data.url else {}
    places["training.storage"] = config.training.storage
    if config.mope is not None and config.mope.host is not None:
        places["mope.host"] = config.mope.host
    relative = {key: place for key, place in places.items() if "://" not in place and not place.startswith(("/", "~"))}
    if relative:
        instead = " ".join(f"{key}=$PWD/{place}" for key, place in relative.items())
        raise RecipeError(
            f"{' and '.join(relative)} must be absolute in a submitted job, which runs in a temporary copy of this "
            f"folder: on one machine add {instead}, on a cluster give URLs or paths that every node reaches"
        )


def refuse_lost_tracking(config: RunConfig) -> None:
    tracking = config.tracking
    somewhere = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or is_local(config.training.storage)
    if tracking.mlflow and not somewhere:
        raise RecipeError(
            "tracking.uri is not set, so MLflow's database would vanish with the job's temporary folder: give "
            "tracking.uri=http://HOST:5000 (`python -m launch ui --serve` starts that server), or tracking.mlflow=false"
        )


def is_local(url: str) -> bool:
    """Whether a URL or path is a path of this machine's file system."""
    return "://" not in url or url.startswith(("file://", "local://"))


def absolute_paths(config: RunConfig, root: Path) -> RunConfig:
    """The same run with every relative local path taken from `root`, as workers run in another folder.

    The MLflow store is filled in as well: MLFLOW_TRACKING_URI (MLflow's own setting) or `mlflow.db` beside a local
    `training.storage`.
    """
    config = config.model_copy(deep=True)
    if config.data.url:
        config.data.url = absolute_url(config.data.url, root)
    for entry in config.data.mixture.values():
        entry.url = absolute_url(entry.url, root)
    config.training.storage = absolute_url(config.training.storage, root)
    if config.evaluation:
        config.evaluation.checkpoint = absolute_url(config.evaluation.checkpoint, root)
    if config.mope is not None:
        _settle_backbones(config.mope, root)
    if config.data.cache_dir:
        config.data.cache_dir = absolute_url(config.data.cache_dir, root)
    storage, tracking = config.training.storage, config.tracking
    if tracking.uri is None:
        beside = Path(storage).parent if is_local(storage) else root
        tracking.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{beside / 'mlflow.db'}"
    elif tracking.uri.startswith("sqlite:///"):
        tracking.uri = "sqlite:///" + absolute_url(tracking.uri.removeprefix("sqlite:///"), root)
    spool = f"{config.run_dir}/{SPOOL}" if is_local(storage) else f"{SPOOL}/{config.name}"
    tracking.spool = absolute_url(tracking.spool or spool, root)
    return config


def _settle_backbones(mope: MopeConfig, root: Path) -> None:
    """A host is a path; a tower's source is one only if there is such a folder, else it may be a name."""
    if mope.host is not None:
        mope.host = absolute_url(mope.host, root)
    for tower in (mope.image, mope.text):
        if tower is None:
            continue
        if tower.source is not None and "://" not in tower.source and (root / tower.source).is_dir():
            tower.source = absolute_url(tower.source, root)
        if tower.tokenizer not in ("auto", "bytes") and (root / tower.tokenizer).is_dir():
            tower.tokenizer = absolute_url(tower.tokenizer, root)


def absolute_url(url: str, root: Path) -> str:
    """A local path taken from `root`; any other URL as it is."""
    if "://" in url or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", url):  # also `pipe:...`, for storage to refuse by its name
        return url.removeprefix("file://") if url.startswith("file:///") else url
    return str(root / Path(url).expanduser())
