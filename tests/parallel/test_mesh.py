"""Mesh arithmetic and its error sentences."""

import pytest

from parallel import MeshSpec, largest_legal


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (MeshSpec(6, 4, 8, 2), r"expert_parallel=4 does not divide the world size 6: choose one of \[1, 2, 3, 6\]"),
        (MeshSpec(4, 4, 6, 2), r"moe.experts=6 cannot be spread evenly over parallel.expert_parallel=4 ranks"),
        (MeshSpec(2, 2, 4, 5), r"moe.top_k=5 asks for more experts than moe.experts=4"),
        (MeshSpec(2, 0, 4, 2), r"must be at least 1, but they are 2, 0, 4 and 2"),
    ],
)
def test_impossible_degrees_are_refused_with_both_numbers(spec: MeshSpec, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        spec.validate()


@pytest.mark.parametrize(("world", "expert_parallel"), [(1, 1), (2, 2), (4, 2), (8, 4), (8, 1), (6, 3)])
def test_every_expert_lives_once_in_every_expert_group(world: int, expert_parallel: int) -> None:
    spec = MeshSpec(world, expert_parallel, 12, 2).validate()
    for rank in range(world):
        held = [e for peer in spec.expert_group(rank) for e in spec.experts_of(peer)]
        assert sorted(held) == list(range(12))
        assert rank in spec.expert_group(rank)
        copies = spec.expert_data_group(rank)
        assert len(copies) == spec.expert_copies
        assert {spec.experts_of(peer) for peer in copies} == {spec.experts_of(rank)}


@pytest.mark.parametrize(
    ("world", "wanted", "experts", "expected"),
    [(4, 4, 16, 4), (3, 4, 16, 1), (6, 4, 16, 2), (8, 8, 12, 4), (1, 8, 16, 1)],
)
def test_largest_legal_degree(world: int, wanted: int, experts: int, expected: int) -> None:
    assert largest_legal(world, wanted, experts) == expected
    MeshSpec(world, expected, experts, 1).validate()
