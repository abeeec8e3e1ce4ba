"""A packed ward and a run on it, made once."""

from __future__ import annotations

import pytest

import fleximoe
from tests.launch.api.ward import SMALL, notes, stays, vitals


@pytest.fixture(scope="package")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="package")
def data(place):
    return fleximoe.pack(records=stays(), vitals=vitals(), notes=notes(), tasks="died", out=place / "ward")


@pytest.fixture(scope="package")
def run(place, data):
    training = {**SMALL["training"], "storage": place / "runs"}
    return fleximoe.fit(data, **{**SMALL, "training": training}, name="ward", progress=False)
