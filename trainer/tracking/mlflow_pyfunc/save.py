"""An export as a folder that MLflow can load, with its signature and an example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trainer.run_folder import MLFLOW_CODE, MLFLOW_FORM, read_json

NUMBERS = {"int64": "long", "int32": "integer", "int8": "integer", "float": "float", "double": "double"}


def save_pyfunc(export: Path, out: Path) -> None:
    """Write the model folder.

    Args:
        export: a local export with `MLFLOW_FORM` and `MLFLOW_CODE` (`trainer.inference.portable.registered`).
    """
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import Schema

    from trainer.tracking.mlflow_pyfunc.model import ARTIFACT

    form = read_json(str(export), MLFLOW_FORM) or {}
    inputs, outputs = (Schema([_column(own) for own in form[name]]) for name in ("inputs", "outputs"))
    mlflow.pyfunc.save_model(
        out,
        python_model=export / MLFLOW_CODE,
        artifacts={ARTIFACT: str(export)},
        signature=ModelSignature(inputs, outputs),
        input_example=pd.DataFrame([form["example"]]),
        pip_requirements=[_requirement()],
    )


def _column(own: Mapping[str, Any]) -> Any:
    from mlflow.types import ColSpec

    return ColSpec(_type(own["type"]), own["name"], required=own.get("required", False))


def _type(kind: str | Sequence[str]) -> Any:
    """A type by its word: `text`, `codes` (a list of text), `any`, `list`, names of lists in an object, or of Arrow."""
    from mlflow.types import DataType
    from mlflow.types.schema import AnyType, Array, Object, Property

    if not isinstance(kind, str):
        lists = {"codes": "codes", "channels": "codes"}
        return Object([Property(name, _type(lists.get(name, "list"))) for name in kind])
    # Lists of anything: MLflow takes no whole number for one with a decimal point, and no null.
    words = {"text": DataType.string, "codes": Array(DataType.string), "any": AnyType(), "list": Array(AnyType())}
    return words[kind] if kind in words else DataType[NUMBERS[kind]]


def _requirement() -> str:
    try:
        return f"fleximoe=={version('fleximoe')}"
    except PackageNotFoundError:
        return "fleximoe"
