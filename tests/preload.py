"""What a rank needs and is slow to import: done once, in the process that ranks are forked from (see `ranks.py`).

Each of these costs a rank from a tenth of a second to two seconds; together they cost far more than its training.
Nothing here may start a thread, as a fork takes along only the one that forks: so no MLflow and no Ray.
"""

import gc
import importlib

for name in (
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "matplotlib.backends.backend_agg",
    "pyarrow.parquet",
    "pytest",
    "torchmetrics.functional",
    "transformers.masking_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.vit.modeling_vit",
    "trainer.adapter",
    "trainer.evaluation_job",
    "trainer.jobs",
    "trainer.look_inside",
    "trainer.models.mope.tower_model",
):
    importlib.import_module(name)
# What is there stays: a rank's garbage collector does not look at it, so its pages stay shared.
gc.collect()
gc.freeze()
