"""Commands that meet a live owner of the name: one sentence, exit code 2, before Ray is started or anything written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_shards import create_source, pack
from data_shards.errors import LeaseHeldError
from data_shards.lease.lease import take
from data_shards.lease.owner import this_process
from launch.datasets.pack import PackSettings, pack_source
from launch.errors import exit_code, one_sentence
from launch.runs.train import train_recipe
from launch.sweep.sweep import sweep_recipe
from tests.frozen import snapshot


def _train(folder: Path, words: list[str]) -> None:
    train_recipe("synthetic_small", words, debug=False)


def _sweep(folder: Path, words: list[str]) -> None:
    sweep_recipe(
        "synthetic_small", "gates_routers", [*words, "parallel.workers=1", "parallel.expert_parallel=1"], False
    )


def _pack(folder: Path, words: list[str]) -> None:
    options = ["records=8", "modalities=vector:1"]
    pack_source("synthetic", None, None, options, PackSettings(str(folder / "x"), 1, 1, overwrite=True))


@pytest.mark.parametrize(
    ("verb", "says"),
    [
        (_train, "run x at {place} belongs to {me}: give this run another name=, stop that process"),
        (_sweep, "sweep x at {place} belongs to {me}: give this sweep another name=, stop that process"),
        (_pack, "packing of synthetic at {place} belongs to {me}: pack into another place (--out), stop that process"),
    ],
)
@pytest.mark.parametrize("what", ["run x", "packing of digits", "sweep x"])
def test_a_name_in_use_is_refused(
    verb: Callable[[Path, list[str]], None], says: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is that lies there: a run, a data set and a sweep of one place would overwrite each other as well."""
    options: dict[str, Any] = {"records": 250, "modalities": "series:1,vector:1,image:1"}
    pack(create_source("synthetic", options), str(tmp_path / "data"))
    words = ["name=x", f"data.url={tmp_path}/data", f"training.storage={tmp_path}"]
    with take(str(tmp_path / "x"), what, "-") as lease:
        before = snapshot(str(tmp_path / "x"))
        with pytest.raises(LeaseHeldError) as refusal:
            verb(tmp_path, words)
        assert snapshot(str(tmp_path / "x")) == before and len(before) == 1
        lease.confirm()
    me = this_process()
    text = one_sentence(refusal.value)
    head, _, rest = text.partition(", at work since ")
    _, _, advice = rest.partition(" UTC: ")
    expected = says.format(place=tmp_path / "x", me=f"{me.user}@{me.host} (pid {me.pid})")
    assert f"{head}: {advice}".startswith(expected)
    assert exit_code(refusal.value) == 2
    assert not (tmp_path / "mlflow.db").exists(), "nothing was tracked"
