"""Which text, picture or code a prediction rests on: each is hidden in turn, and the answer is asked for again.

A pass hides one object of one modality in every record at once, so there are as many passes as the record with the most
objects has, at most `MOST_OBJECTS` a modality: the newest ones. What is left out is counted. A modality whose only
object is hidden is there, and empty.

Shape legend: B records, R objects or codes of a batch, C answers of a task.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from data_shards import Batch, DatasetSchema, Group, TaskSpec, group_layout
from data_shards.records.vocabulary import Vocabulary
from trainer.inference.answers import answer
from trainer.models.layers.hide_times import without_rows
from trainer.models.layers.missing import select_pairs
from trainer.models.layers.ragged import offsets_to_ids
from trainer.models.output import Fused

MOST_OBJECTS = 32  # of one modality in one record
EXCERPT = 60  # characters of a text
_ENTRY = pa.struct(
    [
        ("modality", pa.string()),
        ("object", pa.int32()),
        ("time", pa.float32()),
        ("share", pa.float32()),
        ("what", pa.string()),
    ]
)


@dataclass(frozen=True)
class Objects:
    """All objects and codes of a batch, modality by modality, on the CPU.

    Attributes:
        modality_R, sample_R: whose they are. object_R: number in its record and modality, by time, from 0.
        hidden_R: whether it was hidden once; it is among the newest.
        time_R: as the record counts time; NaN without times. what_R: the code, or how a text begins; None of the rest.
        shares: task -> share_R of the changes of the record's answer that its objects make; sums to 1 where anything
            changes anything.
    """

    modality_R: Tensor
    sample_R: Tensor
    object_R: Tensor
    hidden_R: Tensor
    time_R: Tensor
    what_R: list[str | None]
    shares: dict[str, Tensor]


def has_objects(schema: DatasetSchema) -> bool:
    """Whether there is anything that could be hidden one at a time."""
    return any(spec.has_objects or spec.kind == "codes" for spec in schema.modalities)


def explain_objects(
    model: nn.Module,
    batch: Batch,
    schema: DatasetSchema,
    tasks: list[TaskSpec],
    whole: Fused,
    vocabularies: dict[int, Vocabulary],
) -> Objects:
    """Hide each object in turn.

    Args:
        whole: the model's output with everything. vocabularies: modality number -> vocabulary, of codes.
    """
    before = {task.name: answer(task, whole.logits[task.name]) for task in tasks}
    tables = []
    for name, numbers in group_layout(schema).items():
        spec = schema.modalities[numbers[0]]
        if spec.has_objects or spec.kind == "codes":
            rows = _rows(batch.groups[name], schema, batch, vocabularies)
            rows |= {task.name: torch.zeros(len(rows["sample"]), device=batch.device) for task in tasks}
            tables.append((name, rows))
    for name, rows in tables:
        for modality in rows["modality"].unique().tolist():
            own_R = rows["modality"] == modality
            for back in range(min(MOST_OBJECTS, int(rows["object"][own_R].max()) + 1)):
                hidden_R = own_R & (rows["from_last"] == back)
                kept = _without(batch.groups[name], ~hidden_R)
                logits = model(batch.changed(batch.present_BM, {**batch.groups, name: kept})).logits
                place_R = hidden_R.nonzero()[:, 0]
                for task in tasks:
                    change_B = (answer(task, logits[task.name]) - before[task.name]).abs().mean(dim=1)
                    rows[task.name][place_R] = change_B[rows["sample"][place_R]].float()
    joined: dict[str, Any] = {
        key: torch.cat([rows[key] for _, rows in tables]).cpu()
        for key in ("modality", "sample", "object", "from_last", "time", *before)
    }
    return Objects(
        joined["modality"],
        joined["sample"],
        joined["object"],
        joined["from_last"] < MOST_OBJECTS,
        joined["time"],
        [what for _, rows in tables for what in rows["what"]],
        {task: _shares(joined[task], joined["sample"], len(batch)) for task in before},
    )


def _shares(change_R: Tensor, sample_R: Tensor, records: int) -> Tensor:
    total_B = torch.zeros(records).index_add(0, sample_R, change_R)
    return change_R / total_B.clamp_min(1e-12)[sample_R]


def _without(group: Group, keep_R: Tensor) -> Group:
    return without_rows(group, keep_R) if hasattr(group, "ids_O") else select_pairs(group, keep_R)


def _rows(group: Any, schema: DatasetSchema, batch: Batch, vocabularies: dict[int, Vocabulary]) -> dict[str, Any]:
    """Columns of the group's objects, or codes, in its order."""
    modality_R, sample_R, codes = group.modality_P, group.sample_P, hasattr(group, "ids_O")
    if codes:
        pair_R = offsets_to_ids(group.offsets, len(group.ids_O))
        modality_R, sample_R, time_R = modality_R[pair_R], sample_R[pair_R], group.times_O
    else:
        time_R = group.times_P
    # Objects of one modality in one record stand together, by time.
    _, run_R, size_U = torch.unique_consecutive(
        modality_R * max(1, len(batch)) + sample_R, return_inverse=True, return_counts=True
    )
    object_R = torch.arange(len(run_R), device=batch.device) - (size_U.cumsum(0) - size_U)[run_R]
    return {
        "modality": modality_R,
        "sample": sample_R,
        "object": object_R,
        "from_last": size_U[run_R] - 1 - object_R,
        "time": _as_recorded(time_R, modality_R, sample_R, schema, batch),
        "what": _what(group, modality_R, vocabularies),
    }


def _as_recorded(time_R: Tensor, modality_R: Tensor, sample_R: Tensor, schema: DatasetSchema, batch: Batch) -> Tensor:
    """Times of windows that end at a moment, counted from the record's own zero again."""
    specs, device = schema.modalities, time_R.device
    timed_M = torch.tensor([spec.has_times for spec in specs], device=device)
    found_R = torch.where(timed_M[modality_R], time_R, torch.nan)
    if batch.moment_B is None:
        return found_R
    ratio_M = torch.tensor(schema.moment_ratios, device=device)
    end_M = torch.tensor([spec.horizon or torch.nan for spec in specs], device=device)
    shift_R = batch.moment_B[sample_R] * ratio_M[modality_R] - end_M[modality_R]
    return found_R + shift_R.nan_to_num(0.0)


def _what(group: Any, modality_R: Tensor, vocabularies: dict[int, Vocabulary]) -> list[str | None]:
    if hasattr(group, "ids_O"):
        pairs = zip(modality_R.tolist(), group.ids_O.tolist(), strict=True)
        return [vocabularies[modality].name(number) for modality, number in pairs]
    if hasattr(group, "bytes_O"):
        data, ends = bytes(group.bytes_O.cpu().numpy()), group.offsets.tolist()
        return [data[a : min(b, a + 4 * EXCERPT)].decode("utf-8", "ignore")[:EXCERPT] for a, b in pairwise(ends)]
    return [None] * len(modality_R)


def object_columns(objects: Objects, names: dict[int, str], records: int) -> dict[str, pa.Array]:
    """`TASK.objects`, lists of what was hidden with the largest share first, and how many objects were not hidden.

    Args:
        names: of modalities by number.
    """
    modality, number = objects.modality_R.tolist(), objects.object_R.tolist()
    sample, time = objects.sample_R.tolist(), objects.time_R.tolist()
    rows = objects.hidden_R.nonzero()[:, 0].tolist()
    columns = {}
    for task, share_R in objects.shares.items():
        lists: list[list[dict[str, Any]]] = [[] for _ in range(records)]
        share = share_R.tolist()
        for r in sorted(rows, key=lambda r: -share[r]):
            lists[sample[r]].append(
                {
                    "modality": names[modality[r]],
                    "object": number[r],
                    "time": None if time[r] != time[r] else time[r],
                    "share": share[r],
                    "what": objects.what_R[r],
                }
            )
        columns[f"{task}.objects"] = pa.array(lists, pa.list_(_ENTRY))
    left_out_B = torch.bincount(objects.sample_R[~objects.hidden_R], minlength=records)
    return columns | {"objects_not_hidden": pa.array(left_out_B.numpy(), pa.int64())}
