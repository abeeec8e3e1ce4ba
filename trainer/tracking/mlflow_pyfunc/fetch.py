"""Versions of registered models, back out of MLflow: which one a name means now, and its export."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.tracking.mlflow_client import explain, tracking_client

SCHEME = "models:/"
_WORD = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<number>\d+)|@(?P<alias>[^/@]+))?")


class NoVersionError(ValueError):
    """There is no such version of a registered model. Says what is there."""


@dataclass(frozen=True)
class Registered:
    """A version.

    Attributes:
        tags: what it says of itself; `uri` is the checkpoint that it comes from.
    """

    name: str
    number: str
    tags: Mapping[str, str]


def find_version(word: str, uri: str) -> Registered:
    """The version that `models:/NAME` (the newest), `models:/NAME/3` or `models:/NAME@ALIAS` means in the MLflow `uri`.

    Raises NoVersionError.
    """
    from mlflow.exceptions import MlflowException

    said = _WORD.fullmatch(word)
    if said is None:
        raise NoVersionError(f"{word} is no version: write models:/NAME, models:/NAME/3 or models:/NAME@ALIAS")
    name, number, alias = said["name"], said["number"], said["alias"]
    client = tracking_client(uri)
    try:
        if alias:
            found = client.get_model_version_by_alias(name, alias)
        elif number:
            found = client.get_model_version(name, number)
        else:
            versions = client.search_model_versions(f"name = '{name}'")
            if not versions:
                raise NoVersionError(f"{word}: the MLflow at {uri} has no version of it")
            found = max(versions, key=lambda own: int(own.version))
    except MlflowException as error:
        raise NoVersionError(f"{word}: {explain(error, uri)}") from None
    return Registered(name, str(found.version), dict(found.tags or {}))


def fetch_export(version: Registered, uri: str, out: Path) -> Path | None:
    """The folder of its export, below `out`; None for a version that is only a pointer at a checkpoint."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        made = download_artifacts(f"{SCHEME}{version.name}/{version.number}", dst_path=str(out), tracking_uri=uri)
    except (MlflowException, OSError):  # a pointer has no artifacts
        return None
    return next((file.parent for file in sorted(Path(made).rglob("model.json"))), None)
