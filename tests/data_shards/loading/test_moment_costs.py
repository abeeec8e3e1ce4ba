"""What a moment costs, from an index alone, against the batch of that moment."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data_shards import DataConfig, Manifest, StepLoader, TokenWeights
from data_shards.loading.costs import complete_costs, held_by, read_costs
from data_shards.records.columns import Columns
from data_shards.records.knots import KNOTS, knot_ranks, knot_tables, knots_of, rows_until
from data_shards.shards.index import ABSENT
from data_shards.shards.reader import Reader, read_index
from tests.data_shards.moments import SCHEMA, make_moments, names

RECORDS = 40
# Of labs, notes, scores, pictures, ecgs, static.
WEIGHTS = TokenWeights(
    np.array([8.0, 0, 0, 0, 0, 2]),
    np.ones(6),
    np.array([0.5, 0, 0, 0, 0, 0]),
    np.array([0.0, 3, 2, 5, 4, 0]),
    np.array([0.0, 1, 1, 1, 1, 0]),
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_moments(tmp_path_factory.mktemp("moments"), RECORDS)


def samples(manifest: Manifest) -> list[Columns]:
    """Of part train, as they are read, in storage order."""
    counts = manifest.counts("default", "train")
    reader = Reader(manifest, DataConfig(url=manifest.url), "train")
    chunk_N = np.repeat(np.arange(len(counts)), counts)
    return reader.read(chunk_N, np.concatenate([np.arange(count) for count in counts.tolist()]))[0]


def test_what_a_moment_holds_is_known_from_the_index(manifest: Manifest) -> None:
    """Exactly here, as no modality has more rows than times are kept; lengths of objects are their mean."""
    column = manifest.column("default", "train")
    held = [held_by(read_index(manifest, n), SCHEMA, column) for n in range(len(manifest.shards))]
    there, objects = (np.concatenate([getattr(own, name) for own in held]) for name in ("there_Sm", "objects_Sm"))
    lengths = np.concatenate([own.lengths_Sm for own in held])
    found = samples(manifest)
    assert len(found) == len(there) > 200
    wanted = np.stack([sample.objects(6) for sample in found])
    assert np.array_equal(there, wanted != ABSENT)
    assert np.allclose(objects, np.maximum(wanted, 0))
    assert (wanted == 0).any() and (wanted == 3).any(), "some are there and empty, some have as many as may be kept"
    exact = np.stack([np.maximum(sample.lengths(SCHEMA), 0) for sample in found])
    assert np.allclose(lengths[:, [0, 2, 3, 5]], exact[:, [0, 2, 3, 5]])
    assert np.abs(lengths - exact)[:, [1, 4]].mean() < 0.25 * exact[:, [1, 4]].mean()


@pytest.mark.parametrize("world", [1, 3])
def test_costs_by_hand(manifest: Manifest, world: int) -> None:
    part = StepLoader(manifest, DataConfig(url=manifest.url), "train", 32).part
    cost_N = np.concatenate([read_costs(part, WEIGHTS, rank, world) for rank in range(world)])
    wanted = []
    for sample in samples(manifest):
        tokens = 0.0
        for m, (number, length) in enumerate(zip(sample.objects(6), sample.lengths(SCHEMA), strict=True)):
            if number == ABSENT:
                tokens += 1
            elif m in (0, 5):
                tokens += WEIGHTS.present_M[m] + WEIGHTS.unit_M[m] * length
            else:
                tokens += number * WEIGHTS.object_M[m] if number else 1  # type: ignore[index]
        wanted.append(round(tokens))
    assert cost_N.tolist() == wanted and len(set(wanted)) > 20


@pytest.mark.parametrize("world", [1, 2, 5, 17])
def test_moments_are_dealt_evenly_and_each_once(manifest: Manifest, world: int) -> None:
    seen, ratios = list[str](), []
    loaders = [StepLoader(manifest, DataConfig(url=manifest.url), "train", 96, rank, world) for rank in range(world)]
    for own in loaders:
        own.deal_by_tokens(complete_costs(read_costs(own.part, WEIGHTS)))
    for steps in zip(*(own.steps(0) for own in loaders), strict=True):
        seen += [name for step in steps for batch in step.micro_batches for name in batch.names()]
        assert steps[0].load is not None and len({(step.load.fullest, step.load.mean) for step in steps}) == 1  # type: ignore[union-attr]
        ratios.append(steps[0].load.ratio)
    assert sorted(seen) == sorted(names(RECORDS))
    assert max(ratios[:-1]) < 1.25


def test_counts_of_rows_are_exact_at_knots_and_near_between() -> None:
    rng = np.random.default_rng(0)
    timed = np.array([True, False, True])
    for rows in (1, 2, KNOTS, KNOTS + 1, 100, 1000):
        time = np.sort(rng.choice([rng.uniform(0, 50, rows), rng.integers(0, 9, rows)])).astype(np.float32)
        pieces = [(np.full(rows, 2), time[rng.permutation(rows)]), (np.ones(3, np.int64), np.zeros(3))]
        knots = knots_of(pieces, timed)
        kept = knot_ranks(rows)
        assert len(knots) == len(kept) == min(rows, KNOTS) and kept[0] == 0 and kept[-1] == rows - 1
        assert np.array_equal(knots, time[kept])
        (_, _, table) = knot_tables(knots, np.array([[0, 0, rows]]))
        ask = np.concatenate([time, rng.uniform(-5, 60, 200)])
        found = rows_until(np.repeat(table, len(ask), axis=0), np.full(len(ask), rows), ask)
        exact = np.searchsorted(time, ask, side="right")
        assert np.array_equal(found > 0, exact > 0)
        assert np.array_equal(found[ask >= time[-1]], exact[ask >= time[-1]])
        if rows <= KNOTS:
            assert np.array_equal(found, exact)
        assert np.abs(found - exact).max() <= (rows - 1) / (KNOTS - 1) + 1
    with pytest.raises(ValueError, match="3 times are kept, and there are rows for 2"):
        knot_tables(np.zeros(3, np.float32), np.array([[2]]))


def test_horizons_and_limits_bound_what_a_moment_costs(manifest: Manifest) -> None:
    """The same index under a schema that looks further back: more is seen, and never more than there is."""
    wide = replace(
        SCHEMA,
        modalities=tuple(
            replace(spec, horizon=None, max_objects=None) if spec.timed else spec for spec in SCHEMA.modalities
        ),
    )
    index, column = read_index(manifest, 0), manifest.column("default", "train")
    narrow, whole = held_by(index, SCHEMA, column), held_by(index, wide, column)
    assert (
        whole.objects_Sm >= narrow.objects_Sm - 1e-6
    ).all() and whole.objects_Sm.sum() > 1.3 * narrow.objects_Sm.sum()
    rows = index.record_K[index.samples_of(index.members(column))]
    assert (whole.objects_Sm <= np.maximum(index.objects_nM[rows], 0) + 1e-6).all()
