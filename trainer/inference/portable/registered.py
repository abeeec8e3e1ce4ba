"""An export with what MLflow needs to offer it as a model: code, columns, an example."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa

from data_shards import ModalitySpec
from data_shards.paths import absolute_url
from trainer.checkpoints.find import open_checkpoint
from trainer.checkpoints.pieces import CheckpointError
from trainer.inference.export import export_model
from trainer.inference.portable.model import PortableModel
from trainer.inference.portable.values import KEY, MOMENTS
from trainer.run_folder import MLFLOW_CODE, MLFLOW_FORM

logger = logging.getLogger(__name__)

MOST_PARAMETERS = 2_000_000_000
"""Of a model that is put into one file, and loaded by one process; a larger one stays a pointer at its checkpoint."""
CODE = Path(__file__).with_name("mlflow_code.py")


def write_registered(checkpoint_url: str, out_url: str) -> str | None:
    """Write the export that a registered version is made of; its folder, or None, with a warning, for a model that
    cannot be one."""

    def export() -> None:
        shapes = open_checkpoint(absolute_url(checkpoint_url)).meta["parameters"].values()
        parameters = sum(math.prod(shape) for shape in shapes)
        if parameters > MOST_PARAMETERS:
            raise CheckpointError(
                f"it has {parameters:,} parameters, and at most {MOST_PARAMETERS:,} are put into one file"
            )
        export_model(checkpoint_url, out_url)

    return offered(export, lambda: PortableModel(out_url), out_url, CODE)


def offered(
    export: Callable[[], object], open_export: Callable[[], PortableModel], out_url: str, code: Path
) -> str | None:
    """Export, open, and write beside it the file that MLflow opens it by and the form of its records; as
    `write_registered`."""
    try:
        export()
        model = open_export()
        said = model.predict(model.records([model.example]))
    except (CheckpointError, ValueError, OSError) as error:
        logger.warning("the registered version only points at the checkpoint, and MLflow cannot load it: %s", error)
        return None
    form = {
        "example": model.example,
        "inputs": [
            {"name": KEY, "type": "text"} if KEY not in model.schema.numbers else {},
            *({"name": MOMENTS, "type": "list"} for _ in range(int(model.schema.has_moments))),
            *({"name": spec.name, "type": _type(spec)} for spec in model.schema.modalities),
        ],
        "outputs": [{"name": field.name, "type": _arrow(field.type), "required": True} for field in said.schema],
    }
    form["inputs"] = [own for own in form["inputs"] if own]
    fs, root = fsspec.url_to_fs(absolute_url(out_url))
    fs.pipe_file(f"{root}/{MLFLOW_CODE}", code.read_bytes())
    fs.pipe_file(f"{root}/{MLFLOW_FORM}", json.dumps(form, indent=1).encode())
    return out_url


def _type(spec: ModalitySpec) -> Any:
    """The column of a modality; a list are the names of lists in an object."""
    if spec.kind == "series":
        return ["times", "channels", "values"]
    if spec.kind == "codes":
        lists = ["codes", *(["times"] if spec.timed else []), *(["values"] if spec.valued else [])]
        return lists if len(lists) > 1 else "codes"
    if spec.timed:
        return ["times", "values"]
    return "text" if spec.kind == "text" else "any"


def _arrow(kind: pa.DataType) -> str:
    if pa.types.is_string(kind):
        return "text"
    return str(kind) if str(kind) in ("int64", "int32", "int8", "float", "double") else "list"
