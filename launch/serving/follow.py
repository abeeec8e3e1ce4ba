"""Newer versions of what is served: looked for, tried, and switched to while requests go on.

A copy loads the newer version beside the one it answers by, and then answers by it; so nothing waits, and no request is
answered by a mixture. A version that does not load, or that takes other records, is said and left alone.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any, Protocol

from data_shards.paths import is_local
from launch.serving.source import Newest, Version, newest, put

logger = logging.getLogger(__name__)

APP = "fleximoe"
_SWITCH_S = 600.0  # for all copies to load a version


class AllCopies(Protocol):
    """Whoever answers."""

    def switch(self, version: Version) -> None:
        """Return when all of them answer by this version. Raises whatever goes wrong."""


class Copies:
    """The copies of a model on Ray Serve.

    Args:
        board: see `launch.serving.replica.Board`.
    """

    def __init__(self, serve: Any, board: Any) -> None:
        self._serve, self._board = serve, board

    def switch(self, version: Version) -> None:
        """See `AllCopies`. Copies that start meanwhile ask the board."""
        import ray

        ray.get(self._board.serve.remote(version))
        handle = self._serve.get_deployment_handle("Replica", APP)
        said = handle.broadcast("switch", version).results(timeout_s=_SWITCH_S)
        assert set(said) <= {version.name}, said


class Follower:
    """Looks for newer versions.

    Args:
        place: where they are put. served: what `newest` said of the version that is served now.
    """

    def __init__(self, model: str, place: str, served: Newest | Version, version: Version, copies: AllCopies) -> None:
        self._model, self._place, self._copies = model, place, copies
        self._seen, self._version = served, version

    def look(self) -> None:
        """Switch to the newest version, if that is another one; what keeps it from that is said once a version."""
        try:
            found = newest(self._model)
            if _origin(found) == _origin(self._seen):
                # Again: a copy that has started in the moment of the last switch may have missed it.
                self._copies.switch(self._version)
                return
        except Exception as error:
            logger.warning("cannot look for a newer version of %s (%s)", self._model, _words(error))
            return
        self._seen = found
        try:
            version = put(found, self._place)
            _check_same(self._version, version)
            self._copies.switch(version)
        except Exception as error:
            logger.warning("%s stays, as %s cannot be served: %s", self._version.name, found.name, _words(error))
            self._back()
            return
        logger.warning("%s is answered by %s now, and no more by %s", self._model, version.name, self._version.name)
        self._forget(self._version)
        self._version = version

    def _back(self) -> None:
        try:
            self._copies.switch(self._version)
        except Exception as error:
            logger.warning("not all copies answer by %s (%s)", self._version.name, _words(error))

    def _forget(self, version: Version) -> None:
        """Nobody loads it any more, and the place may be a small disk."""
        if is_local(self._place) and Path(version.url).is_relative_to(self._place):
            shutil.rmtree(version.url, ignore_errors=True)


def _origin(found: Newest | Version) -> str:
    return found.url if isinstance(found, Version) else found.origin


def _check_same(old: Version, new: Version) -> None:
    """Raise ValueError if the new version does not load, or takes and answers something else."""
    from trainer.inference.portable.model import PortableModel

    before, after = (PortableModel(version.url) for version in (old, new))
    after.predict(after.records([after.example]))
    for what in ("modalities", "tasks"):
        if before.description[what] != after.description[what]:
            raise ValueError(f"its {what} are not those of {old.name}: serve it by a command of its own")


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
