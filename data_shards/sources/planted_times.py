"""Records whose label depends on times, or on a pair of codes, with the best achievable scores.

A record's answer is drawn first, with probability 1/2, and the record is made to show it:

- ``when``: the one object of class 0 came in the second half of the day, not in the first;
- ``order``: the one object of class 0 came before the one of class 1;
- ``window``: the one code c0 stands in the last quarter of the day, not before;
- ``pair``: the codes c0 and c1 are both there, not one of them, among ``codes`` ones; no times;
- ``hourly``: at each full hour from 2 on, whether a code c0 stood in the two hours before (a label at each).

Everything else (other classes, other codes, all other times) is independent of the answer. The label is the answer, but
the other one with probability ``flip``, so the best prediction is the answer itself and its expected accuracy 1 - flip.
With ``shuffle`` a record shows another answer, drawn by itself: nothing is left to be learned.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from data_shards.records.record import Codes, Objects, Record, Value
from data_shards.records.schema import DatasetSchema, ModalitySpec, TaskSpec
from data_shards.records.vocabulary import MAX_NAMED, Vocabulary
from data_shards.sources.base import Source, SourceOptions, hashed_part
from data_shards.sources.planted import WORDS, auroc

SHARES = (("train", 0.7), ("val", 0.1), ("test", 0.2))
DAY = 24.0
CLASSES = 8  # of objects: 0 and 1 are asked for, 6 and 7 tell the answer after the moment
SHAPES: dict[str, tuple[int, ...]] = {"vector": (16,), "image": (1, 8, 8), "waveform": (32, 2)}
NOISE = 0.1  # of objects, whose classes are about 1 apart in every element: a class is never in doubt
WINDOW = 2.0  # hours that an hourly label looks back
_UNIT_RECORDS = 250
_SCORED = 5000  # records that the best score is computed on, at most


class PlantedTimesOptions(SourceOptions):
    """Options of this source."""

    label: Literal["when", "order", "window", "pair", "hourly"] = Field("when", description="what it depends on")
    kind: Literal["text", "vector", "image", "waveform", "codes"] = Field(
        "text", description="of the objects (when and order; the others are codes)"
    )
    records: int = Field(2000, ge=1, description="number of records")
    objects: float = Field(6.0, ge=0, description="mean number of other objects or codes in a record")
    codes: int = Field(1000, ge=3, le=MAX_NAMED - 2, description="different codes")
    flip: float = Field(0.05, ge=0, lt=0.5, description="probability that a label is the wrong one")
    shuffle: bool = Field(False, description="times (of a pair: codes) tell nothing of the label")
    late: Literal["none", "random", "label"] = Field(
        "none",
        description="when, order, window: labels at the end of the day, and a day later one more object, which shows "
        "anything or the label; none: a label of the whole record",
    )
    seed: int = Field(0, description="seed of the records")

    @model_validator(mode="after")
    def _fit(self) -> PlantedTimesOptions:
        if self.label in ("window", "pair", "hourly") and self.kind not in ("codes", "text"):
            raise ValueError(f"label={self.label} is one of codes, not of objects of kind {self.kind}")
        if self.label in ("pair", "hourly") and self.late != "none":
            raise ValueError(f"late is for when, order and window, not for {self.label}")
        return self


class PlantedTimes(Source):
    """Planted records; see the module's text."""

    Options: ClassVar[type[SourceOptions]] = PlantedTimesOptions

    def __init__(self, options: PlantedTimesOptions) -> None:
        super().__init__(options)
        self.o = options
        self.kind = options.kind if options.label in ("when", "order") else "codes"
        self.schema = _schema(options, self.kind)
        if self.kind == "codes":
            # All of them, also those that no record has; the last two come after a moment only
            self.vocabularies = {"events": Vocabulary(tuple(f"c{n}" for n in range(options.codes + 2)))}
        shape = SHAPES.get(self.kind, ())
        self.templates = _rng("templates", self.kind).choice([-0.5, 0.5], (CLASSES, *shape)).astype(np.float32)

    def units(self) -> list[tuple[int, int]]:
        """[start, end) record numbers."""
        count = self.o.records
        return [(start, min(start + _UNIT_RECORDS, count)) for start in range(0, count, _UNIT_RECORDS)]

    def read(self, unit: tuple[int, int], notes: Counter[str]) -> Iterator[Record]:
        """Records of one unit; ``notes`` counts labels that are the wrong ones."""
        for number in range(*unit):
            record, answer_K = self.record(number)
            label_K = np.atleast_1d(np.asarray(record.targets["answer"]))
            notes["labels_flipped"] += int((label_K != answer_K).sum())
            yield record

    def report(self, notes: Counter[str]) -> dict[str, Any]:
        """With ``best_score``: scores of the optimal predictor on the test part (at most 5,000 records)."""
        scored = [n for n in range(self.o.records) if hashed_part(_key(n), SHARES, str(self.o.seed)) == "test"]
        scored = scored[:_SCORED]
        return super().report(notes) | {"best_score": self.best_score(scored), "best_score_records": len(scored)}

    def best_score(self, numbers: list[int]) -> dict[str, dict[str, float]]:
        """Accuracy and AUROC of the best prediction on some records: the answer, or always the same if shuffled."""
        made = [self.record(number) for number in numbers]
        if not made:
            return {}
        label_N = np.concatenate([np.atleast_1d(np.asarray(record.targets["answer"])) for record, _ in made])
        answer_N = np.concatenate([answer_K for _, answer_K in made])
        if self.o.shuffle:
            share = float(label_N.mean())
            return {"answer": {"accuracy": max(share, 1 - share), "auroc": 0.5}}
        area = auroc(answer_N, label_N)
        scores = {"accuracy": float((label_N == answer_N).mean())} | ({"auroc": area} if np.isfinite(area) else {})
        return {"answer": scores}

    def record(self, number: int) -> tuple[Record, np.ndarray]:
        """A record, and its answers [K] (one without moments) before any was flipped."""
        rng, key = _rng(self.o.seed, "record", number), _key(number)
        part = {"default": hashed_part(key, SHARES, str(self.o.seed))}
        if self.o.label == "hourly":
            codes, answer_K, hours_K = self._hours(rng)
            label_K = self._flipped(rng, answer_K)
            return Record(key, {"events": codes}, {"answer": label_K}, part, moments=hours_K), answer_K
        answer_K = np.array([rng.random() < 0.5], float)
        shown = bool(rng.random() < 0.5) if self.o.shuffle else bool(answer_K[0])
        label_K = self._flipped(rng, answer_K)
        value: Value = self._pair(rng, shown) if self.o.label == "pair" else self._shown(rng, shown, bool(label_K[0]))
        if self.o.late == "none":
            return Record(key, {"events": value}, {"answer": float(label_K[0])}, part), answer_K
        return Record(key, {"events": value}, {"answer": label_K}, part, moments=np.array([DAY], "f4")), answer_K

    def _flipped(self, rng: np.random.Generator, answer_K: np.ndarray) -> np.ndarray:
        """Labels: answers, some of them the wrong ones."""
        return np.where(rng.random(len(answer_K)) < self.o.flip, 1 - answer_K, answer_K)

    def _shown(self, rng: np.random.Generator, shown: bool, label: bool) -> Value:
        """Objects that show it by their times, and what comes a day later."""
        others = rng.integers(2, CLASSES - 2, rng.poisson(self.o.objects))
        if self.kind == "codes":
            others = rng.integers(2, self.o.codes, len(others))
        if self.o.label == "order":
            first, second = np.sort(rng.uniform(0, DAY, 2)) if shown else np.sort(rng.uniform(0, DAY, 2))[::-1]
            marked = {0: first, 1: second}
        elif self.o.label == "when":
            marked = {0: rng.uniform(DAY / 2, DAY) if shown else rng.uniform(0, DAY / 2)}
        else:
            marked = {0: rng.uniform(0.75 * DAY, DAY) if shown else rng.uniform(0, 0.75 * DAY)}
        classes = np.concatenate([np.array(list(marked), np.int64), others])
        times = np.concatenate([np.array(list(marked.values())), rng.uniform(0, DAY, len(others))])
        if self.o.late != "none":
            told = label if self.o.late == "label" else rng.random() < 0.5
            last = CLASSES - 2 + int(told) if self.kind != "codes" else self.o.codes + int(told)
            classes, times = np.append(classes, last), np.append(times, 2 * DAY)
        return self._value(rng, classes, times.astype(np.float32))

    def _value(self, rng: np.random.Generator, classes: np.ndarray, times: np.ndarray) -> Value:
        """Objects of these classes at these times, in any order."""
        order = rng.permutation(len(classes))
        classes, times = classes[order], times[order]
        if self.kind == "codes":
            return Codes([f"c{number}" for number in classes.tolist()], times)
        if self.kind == "text":
            return Objects(times, [WORDS[number] for number in classes.tolist()])
        noise = rng.standard_normal((len(classes), *self.templates.shape[1:])).astype(np.float32)
        return Objects(times, list(self.templates[classes] + np.float32(NOISE) * noise))

    def _pair(self, rng: np.random.Generator, shown: bool) -> Codes:
        """Both codes, or one of them; with one there is one more of the others, so that their number tells nothing."""
        marked = [0, 1] if shown else [int(rng.integers(2))]
        others = rng.integers(2, self.o.codes, 2 + rng.poisson(self.o.objects) - len(marked))
        codes = rng.permutation(np.concatenate([marked, others]))
        return Codes([f"c{number}" for number in codes.tolist()])

    def _hours(self, rng: np.random.Generator) -> tuple[Codes, np.ndarray, np.ndarray]:
        """Codes of a day, the answer at each full hour, and the hours."""
        moments = np.arange(WINDOW, DAY + 1).astype(np.float32)
        asked = np.sort(rng.uniform(0, DAY, rng.poisson(DAY * np.log(2) / WINDOW)))  # 1/2: there is one in two hours
        since = moments[:, None] - asked[None].astype(np.float32)
        answer_K = ((since >= 0) & (since < WINDOW)).any(axis=1).astype(float)
        shown = rng.uniform(0, DAY, rng.poisson(DAY * np.log(2) / WINDOW)) if self.o.shuffle else asked
        others = rng.integers(2, self.o.codes, rng.poisson(self.o.objects))
        codes = np.concatenate([np.zeros(len(shown), np.int64), others])
        times = np.concatenate([shown, rng.uniform(0, DAY, len(others))]).astype(np.float32)
        return Codes([f"c{number}" for number in codes.tolist()], times), answer_K, moments


def _schema(o: PlantedTimesOptions, kind: str) -> DatasetSchema:
    at_moments = o.label == "hourly" or o.late != "none"
    horizon = 2 * WINDOW if o.label == "hourly" else DAY
    about: dict[str, Any] = {} if o.label == "pair" else {"timed": True, "time_unit": "hours", "horizon": horizon}
    shape = SHAPES.get(kind, ())
    about |= {"shape": shape[1:] if kind == "waveform" else shape}
    about |= {"dtype": "float32"} if kind == "image" else {}
    events = ModalitySpec("events", kind, **about)  # type: ignore[arg-type]
    when: dict[str, Any] = {"timed": True, "time_unit": "hours"} if at_moments else {}
    return DatasetSchema("planted_times", (events,), (TaskSpec("answer", "binary", **when),))


def _rng(*key: object) -> np.random.Generator:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, "<u8").astype(np.uint64)))


def _key(number: int) -> str:
    return f"r{number:07d}"
