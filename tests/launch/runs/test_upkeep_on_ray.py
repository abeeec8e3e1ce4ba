"""`verify` and `copy` with the workers of a Ray: what one process finds and writes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.data_shards.build import make_set
from tests.launch.commands import ROOT, environment
from tests.launch.heads import ray_head

pytestmark = [pytest.mark.ray, pytest.mark.long]


def test_workers_of_a_ray_look_and_copy(tmp_path):
    manifest = make_set(tmp_path / "set")
    files = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    with ray_head() as head:

        def command(*words: str) -> tuple[int, dict]:
            own = [sys.executable, "-m", "launch", *words]
            done = subprocess.run(
                own, cwd=ROOT, env=environment() | head.env, timeout=300, check=False, capture_output=True, text=True
            )
            assert done.stdout, done.stderr
            return done.returncode, json.loads(done.stdout.strip().splitlines()[-1])

        at = ("--address", head.address)
        code, copied = command("copy", str(tmp_path / "set"), str(tmp_path / "copy"), *at)
        assert code == 0 and copied["digest"] == manifest.digest and copied["version"] == 1
        assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == files
        hurt = bytearray(files[manifest.shards[3].name])
        hurt[700] ^= 1
        (tmp_path / "copy" / manifest.shards[3].name).write_bytes(hurt)
        log = ("--log", str(tmp_path / "seen.jsonl"))
        looks = [
            command("verify", str(tmp_path / "copy"), "--deep", *more) for more in ((*at, *log), ("--workers", "1"))
        ]
        assert looks[0] == looks[1] and looks[0][0] == 1
        assert (looks[0][1]["damages"], looks[0][1]["records_lost"], looks[0][1]["shards"]) == (1, 1, 5)
        # What was looked at is not looked at again: the damage is still told, from the log
        code, again = command("verify", str(tmp_path / "copy"), "--deep", *at, *log)
        assert (code, again["looked_at_before"], again["damages"]) == (1, 5, 1)
