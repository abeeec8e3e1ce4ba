"""The class that `mlflow.pyfunc` calls: rows of a data frame in, rows of a data frame out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

ARTIFACT = "model"  # the folder of the export among a model's artifacts


class PlainModel(Protocol):
    """What opens an export."""

    def rows(self, given: Sequence[Mapping[str, Any]], **wishes: bool) -> pd.DataFrame:
        """What the model says of each plain record."""


class Model(PythonModel):
    """Predictions by an export.

    Args:
        open_export: its folder -> what predicts.
    """

    def __init__(self, open_export: Callable[[str], PlainModel]) -> None:
        self._open_export = open_export
        self._model: PlainModel | None = None

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights, once."""
        self._model = self._open_export(context.artifacts[ARTIFACT])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row a record: columns as `predict` writes them; those of the input are modalities."""
        assert self._model is not None, "MLflow loads the context first"
        return self._model.rows(model_input.to_dict("records"))


def offer(open_export: Callable[[str], PlainModel]) -> None:
    """Name the model of a code file to MLflow."""
    set_model(Model(open_export))
