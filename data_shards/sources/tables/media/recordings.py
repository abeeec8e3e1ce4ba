"""Rows of a table -> waveforms of records, from files of sounds, films and signals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from data_shards.records.schema import MAX_LENGTH
from data_shards.sources.readers.recordings.read import Part, read_signal
from data_shards.sources.readers.signals import Signal, fit_signal
from data_shards.sources.tables.media.cells import FileCells
from data_shards.sources.tables.modalities import WaveformTable
from data_shards.sources.tables.rows import Around, Rows


def waveform_reader(
    rows: Rows, spec: WaveformTable, around: Around, notes: Counter[str]
) -> tuple[np.ndarray, Callable[[int, int], np.ndarray]]:
    """(bool [L]: rows that name a file, what reads the one of (record, row))."""
    files, orders = FileCells(rows, spec, around, "signal"), dict[tuple[str, ...], str]()
    leads = spec.lead_names or spec.lead_count

    def make(record: int, row: int) -> np.ndarray:
        where, (start, end) = files.where(record, row), files.stretch(row)
        limit = spec.max_length or MAX_LENGTH["waveform"]
        part = Part(leads, spec.channels, start, end, spec.rate, spec.array, limit)
        signal = read_signal(files.source(row), where, part)
        if not spec.lead_names and spec.channels is None:
            _one_order(signal, where, orders, notes)
        return fit_signal(signal, where, leads, spec.rate, spec.unit, notes, spec.resample)

    return files.there_L, make


def _one_order(signal: Signal, where: str, orders: dict[tuple[str, ...], str], notes: Counter[str]) -> None:
    """A number of leads says nothing of their order, so all files must agree."""
    if not signal.names:
        return
    orders.setdefault(signal.names, where)
    if len(orders) > 1:
        (first, one), (other, two) = list(orders.items())[:2]
        raise ValueError(
            f"{two} has the leads {', '.join(other)}, and those of {one} are {', '.join(first)}; say which ones and in "
            "which order: leads: [I, II, ...]"
        )
    notes[f"waveform_leads.{','.join(signal.names)}"] += 1
