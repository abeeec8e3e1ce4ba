"""`verify`, `copy`, `drop-version` and `inspect --versions` as a user runs them: last line, exit code, going on."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from data_shards import open_manifest, pack
from launch.runs.upkeep import copy_data, drop_data_version, verify_data
from launch.verbs.data import app
from tests.data_shards.build import SCHEMA, ListSource, make_record, make_set


def last(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_a_look_that_was_stopped_goes_on(tmp_path, capsys):
    manifest = make_set(tmp_path / "set")
    place, log = str(tmp_path / "set"), str(tmp_path / "log" / "seen.jsonl")
    assert verify_data(place, True, log, 1, None, False)
    total = sum(shard.bytes + shard.index.bytes for shard in manifest.shards)
    wanted = {"shards": 5, "looked_at_before": 0, "bytes": total, "damages": 0, "records_lost": 0, "deep": True}
    assert last(capsys).items() >= wanted.items()
    path = tmp_path / "log" / "seen.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + '{"half": ')
    # Shard 1 is damaged after it was looked at, shard 4 before
    for number in (1, 4):
        shard = tmp_path / "set" / manifest.shards[number].name
        shard.write_bytes(shard.read_bytes()[:-30_000])
    assert not verify_data(place, True, log, 1, None, False)
    found = last(capsys)
    assert (found["looked_at_before"], found["damages"]) == (3, 1) and 0 < found["records_lost"] < 60
    assert not verify_data(place, False, log, 1, None, False), "a look of another depth counts for nothing"
    assert (last(capsys)["looked_at_before"], found["bytes"] > 0) == (0, True)


def test_exit_code_and_versions(tmp_path, capsys):
    make_set(tmp_path / "set", 40)
    first = open_manifest(str(tmp_path / "set"))
    pack(ListSource(SCHEMA, [make_record(i) for i in range(40, 60)]), str(tmp_path / "set"), append=True)
    second, run = open_manifest(str(tmp_path / "set")), CliRunner()
    shown = run.invoke(app, ["inspect", str(tmp_path / "set"), "--versions", "--json"])
    versions = json.loads(shown.stdout.strip().splitlines()[-1])["versions"]
    assert [(own["number"], own["records"], own["digest"]) for own in versions] == [
        (1, 40, first.digest), (2, 60, second.digest),
    ]  # fmt: skip
    copy_data(versions[0]["url"], str(tmp_path / "copy"), False, 1, None, False, 60, False)
    assert last(capsys)["digest"] == first.digest == open_manifest(str(tmp_path / "copy")).digest
    drop_data_version(str(tmp_path / "set"), "1", 60)
    assert last(capsys)["removed"][0] == f"manifest-00001-{first.digest[:12]}.json"
    assert run.invoke(app, ["verify", str(tmp_path / "set"), "--workers", "1"]).exit_code == 0
    (tmp_path / "set" / second.shards[0].name).unlink()
    assert run.invoke(app, ["verify", str(tmp_path / "set"), "--workers", "1"]).exit_code == 1
