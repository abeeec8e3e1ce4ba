"""A model of every kind of modality and task, as a server's page sees it: what it says is made up, and known."""

from __future__ import annotations

import json
from typing import Any

from data_shards import ModalitySpec
from trainer.inference.portable.example import plain_form

EVIL = "<img src=x onerror=document.title=1>"  # names come from other people's files
_SPECS = (
    ModalitySpec("vitals", "series", channels=("HR", "SpO2"), units=("1/min", "%"), horizon=24.0, time_unit="hours"),
    ModalitySpec("numbers", "vector", channels=("age", EVIL), units=("years", "")),
    ModalitySpec("drugs", "codes", codes=4, vocabulary="a" * 64, timed=True, horizon=24.0),
    ModalitySpec("note", "text"),
    ModalitySpec("scan", "image", shape=(1, 8, 8)),
    ModalitySpec("voice", "waveform", shape=(1,), rate=8000.0),
)
_BINS = 15


def _modality(spec: ModalitySpec) -> dict[str, Any]:
    about = {"timed": spec.has_times, "time_unit": spec.time_unit, "channels": list(spec.channels)}
    own = {"units": list(spec.units), "shape": list(spec.shape), "form": plain_form(spec)}
    return {"name": spec.name, "kind": spec.kind, **about, **own}


def _task(name: str, kind: str, **about: Any) -> dict[str, Any]:
    return {"name": name, "kind": kind, "classes": [], "edges": [], "unit": "", **about}


def _calibration() -> dict[str, Any]:
    count = [40 - 2 * number for number in range(_BINS)]
    stated = [(number + 0.5) / _BINS for number in range(_BINS)]
    own = {"of": "the chance of class 1", "error": 0.0512, "count": count, "stated": stated}
    return {**own, "true": [0.9 * share for share in stated]}


SCHEMA: dict[str, Any] = {
    "version": "ward/3",
    "data": "ward",
    "step": 120,
    "modalities": [_modality(spec) for spec in _SPECS],
    "tasks": [
        _task("died", "binary", classes=["home", EVIL]),
        _task("ward", "multiclass", classes=[f"w{number}" for number in range(20)]),
        _task("signs", "multilabel", classes=["fever", "pain"]),
        _task("stay", "regression", unit="days"),
        _task("life", "survival", edges=[10.0, 20.0, 40.0], unit="days"),
    ],
    "calibration": {"part": "test", "records": 390, "tasks": {"died": _calibration()}},
    "example": {
        "key": "example",
        "vitals": {"times": [6.0], "channels": ["HR"], "values": [80.0]},
        "numbers": [41.5, None],
        "drugs": {"codes": ["aspirin"], "times": [6.0]},
        "note": "a text",
        "scan": [[[0] * 8] * 8],
    },
}
ROW: dict[str, Any] = {
    "record": 0,
    "key": "s1",
    "died.prediction": 1,
    "died.probability": 0.63,
    "ward.prediction": "w7",
    "ward.probability": [0.02 if number != 7 else 0.62 for number in range(20)],
    "signs.prediction": ["fever"],
    "signs.probability": [0.9, 0.2],
    "stay.value": 4.25,
    "life.survival": [0.9, 0.6, 0.3],
    "life.median": 26.7,
}
_SHARES = {"vitals": 0.5, "numbers": 0.3, "drugs": 0.2, "note": 0.0, "scan": None, "voice": None}
_OBJECTS = [
    {"modality": "drugs", "object": 0, "time": 6.0, "share": 0.75, "what": "aspirin"},
    {"modality": "note", "object": 0, "time": None, "share": 0.25, "what": EVIL},
]
EXPLAINED: dict[str, Any] = {
    **ROW,
    **{f"{task['name']}.modality_share": _SHARES for task in SCHEMA["tasks"]},
    **{f"{task['name']}.objects": _OBJECTS for task in SCHEMA["tasks"]},
    "objects_not_hidden": 3,
}


class Model:
    """Answers; keeps what it was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, bool]] = []

    async def schema(self) -> bytes:
        """As of a replica."""
        return json.dumps(SCHEMA).encode()

    async def answer(self, body: bytes, explain: bool) -> tuple[int, bytes]:
        """A record whose key is `bad` is refused."""
        given = json.loads(body)
        self.sent.append((given, explain))
        if isinstance(given, dict) and given.get("key") == "bad":
            return 422, json.dumps({"error": f"record bad is no record, {EVIL}"}).encode()
        count = len(given) if isinstance(given, list) else 1
        rows = [{**(EXPLAINED if explain else ROW), "key": f"s{number}"} for number in range(count)]
        return 200, json.dumps({"predictions": rows, "version": "ward/3"}).encode()
