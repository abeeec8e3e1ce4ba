"""Plain records, many at once: those with nothing but vectors without times and targets without moments.

A record of a few numbers costs ten times as much checked and encoded by itself. Equal bytes and columns as
``codec.encode_record`` and ``decoder.Decoder`` give, which take over wherever anything is unusual: so every sentence
about a record that does not fit is theirs.

Shapes: n records that look alike, F features of all their vectors, W target columns.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from data_shards.records.arrays import JSON, load_tensors
from data_shards.records.codec import encode_record, metadata_of
from data_shards.records.columns import Columns
from data_shards.records.decoder import Decoder
from data_shards.records.precision import lost
from data_shards.records.record import KEY, PART, Record, unusual_part
from data_shards.records.schema import DatasetSchema

_NUMBER = (float, int, np.floating, np.integer)
Form = tuple[str, ...]
Pair = tuple[bytes, Columns]
_LONGEST_GROUP = 1_000  # characters; a header with more is looked at by itself
_MOST_FEATURES = 1 << 16  # of a schema's vectors: of larger ones few fit into memory at a time, and gain nothing
_MEMBER = "__metadata__"


class PlainEncoder:
    """Encodes plain records of one schema."""

    def __init__(self, schema: DatasetSchema) -> None:
        self.schema, self._decoder = schema, Decoder(schema)
        plain = [] if schema.has_moments else [m for m in schema.modalities if m.kind == "vector" and not m.timed]
        few = sum(spec.shape[0] for spec in plain) <= _MOST_FEATURES
        self._shapes = {spec.name: spec.shape for spec in plain if few}
        self._widths = {task.name: task.width for task in schema.tasks}
        self._splits: set[tuple[str, str]] = set()

    def form(self, record: Record) -> Form | None:
        """Names of the modalities of a plain record, in order of their numbers; None for any other record."""
        if not self._shapes or record.moments is not None or len(record.group or "") > _LONGEST_GROUP:
            return None
        for name, value in record.values.items():
            if type(value) is not np.ndarray or value.dtype != np.float32 or value.shape != self._shapes.get(name):
                return None
        for name, target in record.targets.items():
            width = self._widths.get(name)
            alone = width == 1 and isinstance(target, _NUMBER)
            if not alone and target is not None and not (type(target) is np.ndarray and target.shape == (width,)):
                return None
        if not record.values:
            return None
        return tuple(record.values) if len(record.values) == 1 else tuple(sorted(record.values, key=self._number))

    def _number(self, name: str) -> int:
        return self.schema.numbers[name]

    def encode(self, form: Form, records: Sequence[Record]) -> list[Pair]:
        """Member bytes of records of one form, and their columns.

        Raises ValueError: as ``encode_record``. RecordError: as ``Decoder.columns``.
        """
        values_nF = np.stack([np.concatenate([record.values[name] for name in form]) for record in records])  # type: ignore[arg-type]
        targets_nW = self._targets(records)
        if targets_nW is None or not np.isfinite(values_nF).all() or not all(map(self._is_named, records)):
            return [self._alone(record) for record in records]
        # The first and the last one are read back: of the others no byte of the layout differs.
        payload, columns = self._alone(records[0])
        layout = _layout(payload, records[0], self.schema)
        rows_nB = self._rows(payload, values_nF, targets_nW)
        found = [(payload, columns)]
        for n, record in enumerate(records[1:], 1):
            text = f'{{"{_MEMBER}":{JSON.encode(metadata_of(record, self.schema))}{layout}'.encode()
            text += b" " * (-len(text) % 8)
            payload = b"".join((struct.pack("<Q", len(text)), text, rows_nB[n]))
            found.append((payload, _like(columns, record.key, values_nF[n], targets_nW[n : n + 1])))
        self._decoder.columns(payload, records[-1].key)
        return found

    def _alone(self, record: Record) -> Pair:
        payload = encode_record(record, self.schema)
        return payload, self._decoder.columns(payload, record.key)

    def _is_named(self, record: Record) -> bool:
        """Whether key and splits are legal."""
        if not self._splits.issuperset(record.splits.items()):
            for split, part in record.splits.items():
                if not PART.fullmatch(split) or not PART.fullmatch(part) or unusual_part(part):
                    return False
                self._splits.add((split, part))
        return KEY.fullmatch(record.key) is not None

    def _targets(self, records: Sequence[Record]) -> np.ndarray | None:
        """float32 [n, W]; None if any is not legal."""
        columns = []
        for task in self.schema.tasks:
            none = float("nan") if task.width == 1 else np.full(task.width, np.nan)
            own = [record.targets.get(task.name) for record in records]
            exact = np.array([none if value is None else value for value in own], np.float64).reshape(-1, task.width)
            if task.kind in ("regression", "survival"):
                numbers = exact[:, :1] if task.kind == "survival" else exact
                rounded = (numbers.astype(np.float32) != numbers) & ~np.isnan(numbers)
                if any(lost(row) for row in numbers[rounded.any(axis=1)]):
                    return None
            found = exact.astype(np.float32)
            if task.check(found):
                return None
            columns.append(found)
        return np.concatenate(columns, axis=1) if columns else np.empty((len(records), 0), np.float32)

    def _rows(self, payload: bytes, values_nF: np.ndarray, targets_nW: np.ndarray) -> list[bytes]:
        """What follows the header of each record, laid out as the first one's."""
        start = 8 + struct.unpack_from("<Q", payload)[0]
        tensors, _ = load_tensors(payload)
        data = np.frombuffer(payload, np.uint8, offset=start)
        rows_nB = np.tile(data, (len(values_nF), 1))
        for name, block in (("vector.value", values_nF), ("target", targets_nW)):
            if name in tensors:
                place = tensors[name].__array_interface__["data"][0] - data.__array_interface__["data"][0]
                rows_nB[:, place : place + block.shape[1] * 4] = np.ascontiguousarray(block).view(np.uint8)
        return [row.tobytes() for row in rows_nB]


def _layout(payload: bytes, record: Record, schema: DatasetSchema) -> str:
    """What stands in a header behind the metadata."""
    text = payload[8 : 8 + struct.unpack_from("<Q", payload)[0]].decode()
    begin = f'{{"{_MEMBER}":{JSON.encode(metadata_of(record, schema))}'
    assert text.startswith(begin), "metadata come first"
    return text[len(begin) :].rstrip(" ")


def _like(columns: Columns, key: str, features_F: np.ndarray, targets_KW: np.ndarray) -> Columns:
    """Columns of another record of the same form."""
    found = Columns.__new__(Columns)
    found.__dict__.update(columns.__dict__)
    found.key, found.features_, found.targets_KW = key, features_F, targets_KW
    return found
