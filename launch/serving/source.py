"""What is served: a run, a checkpoint, an ensemble, an export or a registered model; and which version is the newest.

Their exports lie in one place, a folder or a URL that all copies of the model see.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fsspec

from data_shards.paths import absolute_url
from launch.errors import UsageError

SCHEME = "models:/"


@dataclass(frozen=True)
class Version:
    """A version that can be loaded: its name, and the folder or URL of its export."""

    name: str
    url: str


@dataclass(frozen=True)
class Newest:
    """The newest version of what is served, before it is fetched.

    Attributes:
        origin: what it is made of; another origin is another version. write: makes its export in a folder or at a URL.
    """

    name: str
    origin: str
    write: Callable[[str], None]


def newest(model: str) -> Newest | Version:
    """What is to be served by now; a `Version` where that is an export, which stays where it is.

    Raises:
        UsageError: no such version in MLflow. CheckpointError: no such run.
    """
    if model.startswith(SCHEME):
        return _registered(model)
    url = absolute_url(model)
    fs, root = fsspec.url_to_fs(url)
    if fs.exists(f"{root}/model.json"):
        about = json.loads(fs.cat_file(f"{root}/model.json"))
        return Version(about.get("name") or f"{about['config']['name']}-step-{about['step']}", url)
    return _of_run(url)


def _of_checkpoint(url: str) -> Newest:
    from trainer.checkpoints.find import open_checkpoint
    from trainer.inference.export import export_model

    checkpoint = open_checkpoint(url)

    def write(out: str) -> None:
        export_model(checkpoint.url, out)

    return Newest(f"{checkpoint.meta['config']['name']}-step-{checkpoint.step}", checkpoint.url, write)


def _of_run(url: str) -> Newest:
    from trainer.ensemble.export import export_ensemble
    from trainer.ensemble.stored import is_ensemble, read_ensemble

    if not is_ensemble(url):
        return _of_checkpoint(url)

    def write(out: str) -> None:
        export_ensemble(url, out)

    return Newest(read_ensemble(url).about["name"], url, write)  # made once, so the place says which


def _registered(word: str) -> Newest:
    from launch.compare.compare import default_uri
    from trainer.tracking.mlflow_pyfunc.fetch import NoVersionError, fetch_export, find_version

    uri = default_uri()
    if uri is None:
        raise UsageError(f"{word}: there is no MLflow to ask; set MLFLOW_TRACKING_URI")
    try:
        found = find_version(word, uri)
    except NoVersionError as error:
        raise UsageError(str(error)) from None

    def write(out: str) -> None:
        with tempfile.TemporaryDirectory(prefix="fleximoe-version-") as folder:
            export = fetch_export(found, uri, Path(folder))
            if export is not None:
                fs, root = fsspec.url_to_fs(out)
                fs.makedirs(root, exist_ok=True)
                fs.put(f"{export}/", f"{root}/", recursive=True)
            elif "uri" in found.tags:  # a pointer at a checkpoint
                _of_checkpoint(found.tags["uri"]).write(out)
            else:
                raise UsageError(f"{word}: version {found.number} is no model of this project")

    return Newest(f"{found.name}/{found.number}", f"{uri} {found.name}/{found.number}", write)


def put(found: Newest | Version, place: str) -> Version:
    """A version where copies of the model find it."""
    if isinstance(found, Version):
        return found
    version = Version(found.name, f"{place}/{re.sub(r'[^A-Za-z0-9._-]', '-', found.name)}")
    found.write(version.url)
    return version
