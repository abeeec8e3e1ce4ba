"""The code of a registered model: MLflow runs a copy of this file when it loads one."""

from trainer.inference.portable.model import PortableModel
from trainer.tracking.mlflow_pyfunc.model import offer

offer(PortableModel)
