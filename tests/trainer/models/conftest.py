"""The tiny data set, packed once a file."""

from __future__ import annotations

import pytest

from data_shards import open_manifest
from data_shards.shards.manifest import Manifest
from tests.trainer.tiny import packed


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return open_manifest(packed(tmp_path_factory.mktemp("tiny") / "data"))
