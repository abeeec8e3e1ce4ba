"""`checkpoint export --format pt2 | onnx`: a model as one graph, for any number of records and of rows.

A folder holds the graph with its weights, `model.pt2` (a program of `torch.export`) or `model.onnx`, and `graph.json`
(modalities, tasks, names of inputs). It is compared with the model before it is written.

Shapes: B records, C logits of a task.
"""

from __future__ import annotations

import copy
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import torch
import torch.fx.experimental._config
from torch import Tensor, nn

from data_shards import Batch, DatasetSchema
from data_shards.lease.lease import take
from data_shards.paths import absolute_url
from trainer.inference.export import export_model
from trainer.inference.portable.graph.model import GraphModel, NoGraphError, check_graph, graph_primitives, inputs_of
from trainer.inference.portable.graph.onnx_graph import OnnxGraph, write_onnx
from trainer.inference.portable.model import PortableModel

FILES = {"pt2": "model.pt2", "onnx": "model.onnx"}
ABOUT = "graph.json"
FORMAT = "fleximoe-graph-1"
TOLERANCE = 1e-4  # of logits, by which the graph may differ from the model
MOST_PATTERNS = 64

Run = Callable[[Mapping[str, Tensor]], Mapping[str, Any]]


def export_graph(checkpoint_url: str, out_url: str, form: str = "pt2") -> dict[str, Any]:
    """Write the graph of a checkpoint's model, or of a run's best one; `graph.json` last.

    Args:
        form: of `FILES`.

    Returns what it is, with `difference`, the largest one of a logit between model and graph, and `records`, how many
    were compared.

    Raises:
        NoGraphError: a model that cannot be one graph, or whose graph answers otherwise than the model.
        ValueError: ONNX cannot hold it, or is not installed.
        CheckpointError: as `export_model`.
    """
    out_url = absolute_url(out_url)
    with tempfile.TemporaryDirectory(prefix="fleximoe-graph-") as folder:
        report = export_model(checkpoint_url, f"{folder}/model")
        portable, path = PortableModel(f"{folder}/model"), Path(folder, FILES[form])
        difference, records = compare(portable, written(portable, path))
        data = path.read_bytes()
    about = {"format": FORMAT, "graph": path.name, **portable.description}
    about["inputs"] = list(inputs_of(example_batch(portable)))
    fs, root = fsspec.url_to_fs(out_url)
    with take(out_url, "export of a model", "export to another folder") as lease:
        fs.makedirs(root, exist_ok=True)
        fs.pipe_file(f"{root}/{path.name}", data)
        lease.confirm()
        fs.pipe_file(f"{root}/{ABOUT}", json.dumps(about, indent=1).encode())
    sizes = {"bytes": len(data), "difference": difference, "records": records}
    return {**report, "model": out_url, **sizes}


def written(portable: PortableModel, path: Path) -> Run:
    """Write the graph in the form that the file's name says; how it is run. Raises NoGraphError, ValueError."""
    program = graph_of(portable)
    if path.suffix == ".onnx":
        tasks = list(portable.model.heads)  # type: ignore[arg-type]
        write_onnx(program, list(inputs_of(example_batch(portable))), tasks, path)
        return OnnxGraph(path, tasks)
    torch.export.save(program, path)
    return torch.export.load(path).module()


def graph_of(portable: PortableModel) -> torch.export.ExportedProgram:
    """The program of an export's model. Raises NoGraphError."""
    return program_of(portable.model, portable.schema, inputs_of(example_batch(portable)))


def program_of(model: nn.Module, schema: DatasetSchema, tensors: dict[str, Tensor]) -> torch.export.ExportedProgram:
    """The program of a model, by the tensors of a batch of several records with everything. Raises NoGraphError."""
    check_graph(model, schema)
    form = GraphModel(copy.deepcopy(model), schema).eval()
    shapes = {name: {0: torch.export.Dim.AUTO} for name in tensors}
    # Sizes of 0 and 1 are sizes like any other: nobody may have a modality.
    alike = torch.fx.experimental._config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), graph_primitives(), alike:
        try:
            return torch.export.export(form, (tensors,), dynamic_shapes=(shapes,), strict=False)
        except Exception as error:  # torch raises many types here, some with whole graphs in them
            raise NoGraphError(
                f"torch.export cannot trace this model ({str(error).strip().splitlines()[0]})"
            ) from error


def compare(portable: PortableModel, run: Run) -> tuple[float, int]:
    """The largest difference of a logit on example records with every pattern of modalities, together and alone; and
    how many there were. Raises NoGraphError: more than `TOLERANCE`."""
    records = list(patterns(portable))
    batches: list[list[dict[str, Any]]] = [records, *([record] for record in records), [{}]]
    worst = 0.0
    for part in batches:
        batch = batch_of(portable, part)
        with torch.no_grad():
            expected: dict[str, Tensor] = portable.model(batch).logits
            found = run(inputs_of(batch))
        for task, logits_BC in expected.items():
            # A maximum would pass over what is not a number.
            worst = max(worst, float((torch.as_tensor(found[task]) - logits_BC).nan_to_num(torch.inf).abs().max()))
    if not worst <= TOLERANCE:
        raise NoGraphError(f"the graph answers otherwise than the model, by up to {worst:.2g} in a logit")
    return worst, len(records)


def patterns(portable: PortableModel) -> Iterator[dict[str, Any]]:
    """The example with every choice of its modalities, the smallest first, at most `MOST_PATTERNS` of them."""
    example = portable.example
    names = [name for name in portable.schema.modality_names if name in example]
    chosen = itertools.chain.from_iterable(itertools.combinations(names, n) for n in range(1, len(names) + 1))
    for own in itertools.islice(chosen, MOST_PATTERNS):
        yield {name: example[name] for name in own}


def example_batch(portable: PortableModel) -> Batch:
    """Three records with everything: sizes of 0 and 1 mean something of their own to torch."""
    return batch_of(portable, [portable.example] * 3)


def batch_of(portable: PortableModel, given: Sequence[dict[str, Any]]) -> Batch:
    """Plain records as a batch on the CPU."""
    numbered = [{**fields, "key": str(number)} for number, fields in enumerate(given)]
    return portable.batch(portable.records(numbered))
