"""`python -m trainer` as a process: how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.trainer.tiny import config, packed

ENDS = """
import sys
import torch.distributed
from trainer.__main__ import main

sys.argv = ["trainer", sys.argv[1]]
code = main()
print(code, torch.distributed.is_initialized())
"""


def test_no_thread_of_a_process_group_outlives_a_finished_run(tmp_path: Path) -> None:
    """Such a thread aborts the process now and then, on a loaded machine, and torchrun calls the run a failed one."""
    tree = config(packed(tmp_path / "data"), tmp_path, training__max_steps=1)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree.model_dump(mode="json", exclude={"evaluation"})))
    words = [sys.executable, "-c", ENDS, str(recipe)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=Path(__file__).parents[2], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr
