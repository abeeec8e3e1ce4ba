"""Records of one work unit, read, checked and encoded: what a worker process of a pack does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from data_shards.packing.units.encoded import Encoded, Summary, dump_records, summary_of
from data_shards.packing.units.plain import Form, PlainEncoder
from data_shards.records.arrays import Limits
from data_shards.records.codec import encode_record
from data_shards.records.columns import Columns, sample_times, timed_rows
from data_shards.records.decoder import Decoder
from data_shards.records.knots import knots_of
from data_shards.records.record import Objects, Record
from data_shards.records.schema import RARE, UNKNOWN, DatasetSchema
from data_shards.records.statistics import TRAIN, Accumulator
from data_shards.records.vocabulary import Vocabulary
from data_shards.shards.index import group_code

if TYPE_CHECKING:
    from data_shards.sources.base import Source


TOGETHER = 512  # records of a unit that are looked at for some that look alike
_Done = tuple[Form | None, Record, bytes, Columns]  # a record, its form if it is plain, its bytes and columns


@dataclass(frozen=True)
class UnitEncoder:
    """Encodes units of a source.

    Args:
        schema: the source's, with its vocabularies. vocabularies: of each modality of codes.
    """

    source: Source
    schema: DatasetSchema
    vocabularies: Mapping[str, Vocabulary]

    def __call__(self, unit: Any, buffers: Sequence[bytes | memoryview] = ()) -> tuple[Summary, bytes]:
        """What is known of the unit, and the buffer of its records.

        Raises ValueError: a record that does not fit the schema, is too large, or has the key of another one.
        """
        schema, notes = self.schema, Counter[str]()
        records, train = list[Encoded](), dict[str, list[Columns]]()
        shapes = dict[Form | None, tuple[np.ndarray, np.ndarray]]()  # lengths and objects, which plain records share
        for form, record, payload, columns in self._encoded(unit, notes):
            for split, part in record.splits.items():
                train.setdefault(split, []).extend([columns] if part == TRAIN else [])
            if form not in shapes or form is None:
                shapes[form] = columns.lengths(schema), columns.objects(len(schema.modalities))
            events, group = len(columns.times_O), group_code(record.group)
            encoded = Encoded(record.key, payload, record.splits, *shapes[form], columns.targets_KW, events, group)
            if schema.has_moments:
                encoded.times_K = sample_times(columns, schema)
                encoded.knots_X = knots_of(timed_rows(columns), np.array([m.has_times for m in schema.modalities]))
            records.append(encoded)
        statistics = {split: Accumulator(schema) for split in train}
        for split, columns_list in train.items():
            statistics[split].add(columns_list)
        _refuse_twice(records)
        return summary_of(records, len(schema.modalities), notes, statistics), dump_records(records)

    def _encoded(self, unit: Any, notes: Counter[str]) -> Iterator[_Done]:
        """All records in order; plain ones wait for some that look like them."""
        plain, decoder, window = PlainEncoder(self.schema), Decoder(self.schema), list[_Done | tuple[Form, Record]]()
        for record in self.source.read(unit, notes):
            form = plain.form(record)
            window.append((form, record) if form else self._alone(record, decoder, notes))
            if len(window) == TOGETHER:
                yield from _joined(window, plain)
                window.clear()
        yield from _joined(window, plain)

    def _alone(self, record: Record, decoder: Decoder, notes: Counter[str]) -> _Done:
        payload = encode_record(_counted(record, self.schema, notes), self.schema, self.vocabularies)
        if len(payload) > Limits().member_bytes:
            raise ValueError(f"record {record.key} has {len(payload)} bytes, at most {Limits().member_bytes}")
        # Reading back what was just written costs little and makes an unreadable shard impossible.
        columns = decoder.columns(payload, record.key)
        self._count_codes(columns, notes)
        return None, replace(record, values={}), payload, columns

    def _count_codes(self, columns: Columns, notes: Counter[str]) -> None:
        """How many codes have no number of their own."""
        if not len(columns.code_ids_C):
            return
        number_C = np.repeat(columns.codes_Q, columns.code_counts_Q)
        for what, reserved in (("unknown", UNKNOWN), ("rare", RARE)):
            for number, count in enumerate(np.bincount(number_C[columns.code_ids_C == reserved]).tolist()):
                if count:
                    notes[f"codes_{what}.{self.schema.modality_names[number]}"] += count


def _joined(window: Sequence[_Done | tuple[Form, Record]], plain: PlainEncoder) -> Iterator[_Done]:
    """Records of a window in order, those of one form encoded together."""
    alike = dict[Form, list[Record]]()
    for own in window:
        if len(own) == 2:
            alike.setdefault(own[0], []).append(own[1])
    done = {form: iter(plain.encode(form, records)) for form, records in alike.items()}
    for own in window:
        if len(own) == 2:
            yield (*own, *next(done[own[0]]))
        else:
            yield own


def newest(record: Record, schema: DatasetSchema) -> tuple[Record, dict[str, int]]:
    """The record with no more objects than its modalities keep; modality -> how many are left out."""
    # What is newest depends on the moment, where there are some: then reading a sample leaves the others out.
    specs = () if schema.has_moments else schema.modalities
    kept, left = dict[str, Objects](), dict[str, int]()
    for spec in specs:
        value = record.values.get(spec.name)
        if spec.max_objects and isinstance(value, Objects) and len(value) > spec.max_objects:
            kept[spec.name], left[spec.name] = value.newest(spec.max_objects), len(value) - spec.max_objects
    return (replace(record, values={**record.values, **kept}) if kept else record), left


def _counted(record: Record, schema: DatasetSchema, notes: Counter[str]) -> Record:
    """As `newest`; what is left out is counted."""
    record, left = newest(record, schema)
    for name, number in left.items():
        notes[f"older_objects_left_out.{name}"] += number
        notes[f"records_with_more_than_{schema.modalities[schema.numbers[name]].max_objects}_objects.{name}"] += 1
    return record


def _refuse_twice(records: Sequence[Encoded]) -> None:
    """Raise ValueError if two records of a unit have one key; those of different units are compared at the end."""
    for key, count in Counter(record.key for record in records).items():
        if count > 1:
            raise ValueError(f"record key {key!r} occurs twice; keys must be unique in the data set")
