"""The code of a registered ensemble: MLflow runs a copy of this file when it loads one."""

from trainer.ensemble.portable import open_export
from trainer.tracking.mlflow_pyfunc.model import offer

offer(open_export)
