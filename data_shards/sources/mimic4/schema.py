"""What a record of MIMIC-IV holds, by the tables that are there."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from data_shards.records.schema import DatasetSchema, ModalitySpec, TaskSpec
from data_shards.sources.mimic4.codes import HISTORY, TIMED_CODES
from data_shards.sources.mimic4.items import LABS, VITALS
from data_shards.sources.mimic4.options import Mimic4Options
from data_shards.sources.mimic4.recordings import LEADS, RATE
from data_shards.sources.mimic4.studies import MOST_TEXT

ECG_SAMPLES = 10_000  # of one


def mimic4_schema(
    tables: Collection[str], options: Mimic4Options, window_h: float, phenotypes: tuple[str, ...] | None
) -> DatasetSchema:
    """Modalities of these tables, ``static``, and the tasks.

    Args:
        tables: names of those that are there. window_h: hours of a stay that are seen. phenotypes: their names, or None
            for the 48-hour tasks.
    """
    times: dict[str, Any] = {"time_unit": "hours", "horizon": window_h}
    objects: dict[str, Any] = {"timed": True, **times}
    side, rate = options.image_side, RATE / options.ecg_step
    possible = {
        "vitals": ModalitySpec("vitals", "series", channels=tuple(VITALS), **times),
        "labs": ModalitySpec("labs", "series", channels=tuple(LABS), **times),
        "notes": ModalitySpec(
            "notes", "text", max_length=MOST_TEXT, max_objects=options.max_notes, description="radiology reports",
            **objects,
        ),
        "cxr": ModalitySpec(
            "cxr", "image", shape=(1, side, side), dtype="uint8", max_objects=options.max_cxr,
            description="frontal chest X-rays", **objects,
        ),
        "ecg": ModalitySpec(
            "ecg", "waveform", channels=LEADS, rate=rate, max_length=ECG_SAMPLES, unit="mV",
            max_objects=options.max_ecg, **objects,
        ),
    }  # fmt: skip
    modalities = [spec for name, spec in possible.items() if name in tables]
    for name, sources in TIMED_CODES.items():
        if set(sources) & set(tables):
            modalities.append(ModalitySpec(name, "codes", description=f"{name} of the stay", **objects))
    if set(HISTORY) & set(tables):
        about = "diagnoses and procedures of admissions that had ended when the stay began"
        modalities.append(ModalitySpec("history", "codes", description=about))
    static = "age at the stay in years, 1 for male"
    modalities.append(ModalitySpec("static", "vector", channels=("age", "male"), description=static))
    return DatasetSchema("mimic4", tuple(modalities), _tasks(options, phenotypes))


def _tasks(options: Mimic4Options, phenotypes: tuple[str, ...] | None) -> tuple[TaskSpec, ...]:
    if phenotypes is not None:
        return (TaskSpec("phenotypes", "multilabel", classes=phenotypes),)
    where = "in hospital" if options.los_death == "admission" else "in the unit"
    left = f"the stay ends before hour 96 and the patient does not die {where}"
    return (
        TaskSpec("ihm_48", "binary", classes=("survived", "died"), description="dies in hospital"),
        TaskSpec("los_48", "binary", classes=("stayed", "left"), description=left),
    )
