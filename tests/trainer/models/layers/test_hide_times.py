"""What stands in hidden stretches of time is gone, its modality is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from data_shards import Batch
from tests.trainer.models.timed_batch import MOMENTS, SCHEMA, batch_of, build, records_of
from trainer.models.layers.hide_times import drop_stretches, hide_times, last_part, random_window

TIMED = [spec for spec in SCHEMA.modalities if spec.has_times]


def hidden_by_hand(record: dict[str, Any], start: float, end: float) -> dict[str, Any]:
    """Horizons of 10, but for `letter` (20) and `event` (5)."""
    horizon = {"letter": 20.0, "event": 5.0}
    timed = [spec.name for spec in TIMED]

    def kept(name: str, time: float) -> bool:
        fraction = np.float32(time) / np.float32(horizon.get(name, 10.0))
        return not (start <= fraction and (fraction < end or end >= 1))

    return {
        name: [entry for entry in value if kept(name, entry[0])] if name in timed else value
        for name, value in record.items()
    }


def assert_equal(got: Batch, expected: Batch) -> None:
    found, wanted = got.tensors(), expected.tensors()
    assert list(found) == list(wanted)
    for name in found:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=0, equal_nan=True)


def test_windows_of_every_kind_of_modality_by_hand() -> None:
    records = records_of(20, most=6)
    for start, end in [(0.5, 1.0), (0.2, 0.4), (0.0, 1.0), (0.3, 0.3)]:
        windows = torch.tensor([start, end]).expand(len(records), 1, 2)
        expected = batch_of([hidden_by_hand(record, start, end) for record in records])
        assert_equal(hide_times(batch_of(records), SCHEMA, windows), expected)
    half = hide_times(batch_of(records), SCHEMA, last_part(len(records), 0.5))
    assert_equal(half, batch_of([hidden_by_hand(record, 0.5, 1.0) for record in records]))


def test_what_stands_at_the_horizon_is_hidden_with_the_last_part_and_not_before_it() -> None:
    records = [{"note": [(5.0, b"mid"), (10.0, b"end")], "lab": [(10.0, 0, 1.0)], "event": [(5.0, 3, np.nan)]}]
    half = hide_times(batch_of(records), SCHEMA, last_part(1, 0.5))
    assert_equal(half, batch_of([{"note": [], "lab": [], "event": []}]))
    middle = hide_times(batch_of(records), SCHEMA, torch.tensor([[[0.5, 0.9]]]))
    assert_equal(middle, batch_of([{**records[0], "note": [(10.0, b"end")]}]))
    assert half.present_BM[0].nonzero()[:, 0].tolist() == [0, 1, 7]


def test_several_windows_and_one_for_each_record() -> None:
    records = [{"note": [(1.0, b"a"), (4.0, b"b"), (8.0, b"c")]}] * 2
    windows = torch.tensor([[[0.0, 0.2], [0.7, 0.9]], [[0.3, 0.5], [0.0, 0.0]]])
    expected = [{"note": [(4.0, b"b")]}, {"note": [(1.0, b"a"), (8.0, b"c")]}]
    assert_equal(hide_times(batch_of(records), SCHEMA, windows), batch_of(expected))


def test_a_random_window_is_of_the_record_and_spread_over_the_horizon() -> None:
    index_B = torch.arange(2000)
    windows = random_window(index_B, 0.25, 3)
    torch.testing.assert_close(windows[:, 0, 1] - windows[:, 0, 0], torch.full((2000,), 0.25))
    assert (
        float(windows.min()) >= 0 and float(windows.max()) <= 1 and abs(float(windows[:, 0, 0].mean()) - 0.375) < 0.01
    )
    order = torch.randperm(2000)
    assert torch.equal(random_window(index_B[order], 0.25, 3), windows[order])
    assert not torch.equal(random_window(index_B, 0.25, 4), windows)


def test_a_model_reads_a_batch_with_hidden_times() -> None:
    model = build(MOMENTS).eval()
    batch = batch_of(records_of(8), MOMENTS, [1.0] * 8)
    hidden = hide_times(batch, MOMENTS, last_part(8, 0.5))
    assert hidden.plan is None and hidden.moment_B is batch.moment_B
    with torch.no_grad():
        assert not torch.equal(model(hidden).pooled_BX, model(batch).pooled_BX)
        # Everything hidden is everything empty.
        nothing = hide_times(batch, MOMENTS, last_part(8, 1.0))
        timed = {spec.name for spec in TIMED}
        empty = [{n: [] if n in timed else value for n, value in record.items()} for record in records_of(8)]
        torch.testing.assert_close(model(nothing).pooled_BX, model(batch_of(empty, MOMENTS, [1.0] * 8)).pooled_BX)


def test_stretches_that_training_hides_are_of_the_record_and_as_long_as_asked_on_average() -> None:
    """Every record has an event at each hundredth of its window: what is left of them shows the stretch."""
    times = [round(10 * number / 100 + 0.05, 2) for number in range(100)]
    name = next(spec.name for spec in TIMED if spec.kind == "series")
    records = [{name: [(time, 0, 1.0) for time in times]} for _ in range(300)]
    batch = batch_of(records)
    kept = drop_stretches(batch, SCHEMA, 0.3, key=5)
    left_B = next(group.offsets for key, group in kept.groups.items() if "series" in key).diff()
    hidden_B = 1 - left_B / 100
    assert abs(float(hidden_B.mean()) - 0.3) < 0.03 and float(hidden_B.max()) <= 0.61 and float(hidden_B.min()) < 0.05
    again = drop_stretches(batch, SCHEMA, 0.3, key=5)
    assert_equal(kept, again)
    assert torch.equal(kept.present_BM, batch.present_BM)
    other = next(
        group.offsets for key, group in drop_stretches(batch, SCHEMA, 0.3, key=6).groups.items() if "series" in key
    )
    assert not torch.equal(other.diff(), left_B)
