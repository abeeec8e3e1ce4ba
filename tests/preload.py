"""What a rank needs and is slow to import: done once, in the process that ranks are forked from (see `ranks.py`).

Each of these costs a rank from a tenth of a second to two seconds; together they cost far more than its training.
Nothing here may start a thread of Python's, as a fork takes along only the one that forks: so no Ray. DeepSpeed comes
as the engine imports it.
"""

import gc
import importlib

import torch

from parallel.engine.engine import _import_deepspeed

_import_deepspeed(torch.device("cpu"))
for name in (
    "matplotlib.backends.backend_agg",
    "pyarrow.parquet",
    "pytest",
    "transformers.masking_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.vit.modeling_vit",
    "trainer.checkpoints.adapter",
    "trainer.jobs.evaluate",
    "trainer.jobs.train",
    "trainer.models.mope.prompt_experts",
    "trainer.models.mope.towers.model",
):
    importlib.import_module(name)
# What is there stays: a rank's garbage collector does not look at it, so its pages stay shared.
gc.collect()
gc.freeze()
