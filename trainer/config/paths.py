"""Where a recipe's paths lead: local ones made absolute, and those refused that a submitted job would lose.

What a path or URL means is decided in `data_shards/paths.py`. Here are the keys that hold one, and what follows
`sqlite:///` in the URI of an MLflow database.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from data_shards.errors import PathError
from data_shards.paths import absolute_path, absolute_url, is_local, is_relative
from trainer.config.errors import RecipeError
from trainer.config.mope import MopeConfig
from trainer.config.run_config import RunConfig
from trainer.run_folder import SPOOL

DATABASE = "mlflow.db"
_SQLITE = "sqlite:///"
T = TypeVar("T")


def refuse_relative_paths(config: RunConfig) -> None:
    """Raise RecipeError if data or storage are relative: a submitted job works in a temporary copy of the folder,
    which holds no data and vanishes with everything written to it."""
    places = {key: getattr(section, name) for key, section, name in _places(config)}
    relative = {key: place for key, place in places.items() if _read(key, is_relative, place)}
    if relative:
        instead = " ".join(f"{key}=$PWD/{place}" for key, place in relative.items())
        raise RecipeError(
            f"{' and '.join(relative)} must be absolute in a submitted job, which runs in a temporary copy of this "
            f"folder: on one machine add {instead}, on a cluster give URLs or paths that every node reaches"
        )


def refuse_lost_tracking(config: RunConfig) -> None:
    tracking, storage = config.tracking, config.training.storage
    somewhere = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or _read("training.storage", is_local, storage)
    if tracking.mlflow and not somewhere:
        raise RecipeError(
            "tracking.uri is not set, so MLflow's database would vanish with the job's temporary folder: give "
            "tracking.uri=http://HOST:5000 (`python -m launch ui --serve` starts that server), or tracking.mlflow=false"
        )


def absolute_paths(config: RunConfig, root: Path) -> RunConfig:
    """The same run with every relative local path taken from `root`, as workers run in another folder.

    The MLflow store is filled in as well: MLFLOW_TRACKING_URI (MLflow's own setting) or `mlflow.db` beside a local
    `training.storage`. Raises RecipeError, which names the key, for what is no place.
    """
    config = config.model_copy(deep=True)
    for key, section, name in _places(config):
        setattr(section, name, _read(key, absolute_url, getattr(section, name), root))
    if config.evaluation:
        checkpoint = config.evaluation.checkpoint
        config.evaluation.checkpoint = _read("evaluation.checkpoint", absolute_url, checkpoint, root)
    if config.mope is not None:
        _settle_towers(config.mope, root)
    for name, encoder in config.model.encoders.items():
        encoder.source = _read(f"model.encoders.{name}.source", _place_or_name, encoder.source, root)
    if config.data.cache_dir:
        config.data.cache_dir = str(_read("data.cache_dir", absolute_path, config.data.cache_dir, root))
    storage, tracking = config.training.storage, config.tracking
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if tracking.uri is not None:
        tracking.uri = _read("tracking.uri", absolute_uri, tracking.uri, root)
    elif given:
        tracking.uri = _read("MLFLOW_TRACKING_URI", absolute_uri, given, root)
    else:
        tracking.uri = database_uri((Path(storage).parent if is_local(storage) else root) / DATABASE)
    spool = f"{config.run_dir}/{SPOOL}" if is_local(storage) else f"{SPOOL}/{config.name}"
    tracking.spool = str(_read("tracking.spool", absolute_path, tracking.spool or spool, root))
    return config


def _places(config: RunConfig) -> Iterator[tuple[str, Any, str]]:
    """(key, its section, its name there) of what every worker reads and writes, wherever it runs."""
    for name, entry in config.data.mixture.items():
        yield f"data.mixture.{name}.url", entry, "url"
    if config.data.url:
        yield "data.url", config.data, "url"
    yield "training.storage", config.training, "storage"
    if config.mope is not None and config.mope.host is not None:
        yield "mope.host", config.mope, "host"


def _settle_towers(mope: MopeConfig, root: Path) -> None:
    for what, tower in (("image", mope.image), ("text", mope.text)):
        if tower is None:
            continue
        if tower.source is not None:
            tower.source = _read(f"mope.{what}.source", _place_or_name, tower.source, root)
        if tower.tokenizer not in ("auto", "bytes"):
            tower.tokenizer = _read(f"mope.{what}.tokenizer", _place_or_name, tower.tokenizer, root)


def _place_or_name(typed: str, root: Path) -> str:
    """What looks like a name on the Hugging Face hub is a path only if there is such a folder."""
    place = absolute_url(typed, root)
    return typed if is_relative(typed) and typed[0] != "." and not Path(place).is_dir() else place


def _read(key: str, rule: Callable[..., T], *arguments: Any) -> T:
    """What a rule makes of the value of a key. Raises RecipeError."""
    try:
        return rule(*arguments)
    except PathError as error:
        raise RecipeError(f"{key}: {error}") from None


def absolute_uri(uri: str, root: Path | None = None) -> str:
    """A tracking URI with the path of its database made absolute, from `root` or the working folder; servers stay.

    MLflow opens what follows `sqlite:///` with SQLAlchemy, for which `%20` is a space and `?` begins options.
    Raises PathError for a `?` that begins none.
    """
    if not uri.startswith(_SQLITE):
        return uri
    path, mark, options = uri.removeprefix(_SQLITE).partition("?")
    if mark and "=" not in options:
        raise PathError(f"{uri!r}: after sqlite:/// a ? begins options such as timeout=5; write %3F if it is of a name")
    return database_uri(absolute_path(unquote(path), root)) + mark + options


def database_uri(file: Path) -> str:
    """The URI under which MLflow opens exactly this file."""
    return _SQLITE + str(file).replace("%", "%25").replace("?", "%3F")


def database_file(uri: str) -> Path | None:
    """The file of a database's URI; None if it is a server's."""
    return Path(unquote(uri.removeprefix(_SQLITE).partition("?")[0])) if uri.startswith(_SQLITE) else None
