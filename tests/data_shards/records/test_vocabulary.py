"""Vocabularies: which number a code has, by hand; written and read back; what is refused."""

from __future__ import annotations

import hashlib
import io
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.errors import TableError
from data_shards.records.vocabulary import MAX_NAMED, Vocabulary, VocabularyRule

CODES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
COUNTS = {"b": 5, "a": 5, "ä": 7, "once": 1, "twice": 2, "also once": 1}


def test_numbers_by_hand() -> None:
    found = Vocabulary.learned(COUNTS, VocabularyRule(min_count=2))
    assert (found.names, found.counts) == (("ä", "a", "b", "twice"), (7, 5, 5, 2))
    assert (found.rare, found.rare_counts) == (("also once", "once"), (1, 1))
    assert found.ids(["twice", "ä", "never seen", "once", "b", "b"]).tolist() == [5, 2, 0, 1, 4, 4]
    assert [found.name(number) for number in range(6)] == ["(unknown)", "(rare)", "ä", "a", "b", "twice"]
    assert found.size == 6
    with pytest.raises(ValueError, match="number 6 is none of this vocabulary's 6"):
        found.name(6)


def test_the_most_frequent_ones_have_a_number() -> None:
    found = Vocabulary.learned(COUNTS, VocabularyRule(max_codes=2))
    assert (found.names, found.rare) == (("ä", "a"), ("b", "twice", "also once", "once"))
    assert Vocabulary.learned({}, VocabularyRule()).ids(["x"]).tolist() == [0]


def test_the_digest_is_of_what_numbers_depend_on() -> None:
    vocabulary = Vocabulary(("a", "ä"), (3, 1), ("q",), (1,))
    text = '[["a","ä"],["q"]]'
    assert vocabulary.digest == hashlib.sha256(text.encode()).hexdigest()
    assert vocabulary.digest == Vocabulary(("a", "ä"), (), ("q",)).digest
    others = [Vocabulary(("ä", "a"), (), ("q",)), Vocabulary(("a", "ä")), Vocabulary(("a", "ä", "q"))]
    assert len({vocabulary.digest, *(other.digest for other in others)}) == 4


@pytest.mark.parametrize(
    "data", [b"[]", b"{}", b'[["a"]]', b'[["a"],"b"]', b'[["a"],["a"]]', b"[[1],[]]", b'[["a"', b"\xff"]
)
def test_what_is_no_vocabulary_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        Vocabulary.of_digested(data)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(CODES, st.integers(1, 9), max_size=30), st.integers(1, 5), st.integers(1, 10), st.randoms())
def test_written_and_read_back_whatever_the_order_of_counting(
    counts: dict[str, int], least: int, most: int, random: st.DataObject
) -> None:
    rule = VocabularyRule(least, most)
    found = Vocabulary.learned(counts, rule)
    items = list(counts.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    assert Vocabulary.learned(Counter(dict(items)), rule) == found
    assert len(found.names) == min(most, sum(count >= least for count in counts.values()))
    again = Vocabulary.from_bytes(found.to_bytes(), found.rows)
    assert again == found and again.digest == found.digest
    plain = Vocabulary.of_digested(found.digested())
    assert (plain.names, plain.rare, plain.counts) == (found.names, found.rare, ()) and plain.digest == found.digest
    for code in counts:
        number = int(again.ids([code])[0])
        assert again.name(number) == (code if code in found.names else "(rare)")


def test_without_counts() -> None:
    given_one = Vocabulary(("x", "y"))
    assert Vocabulary.from_bytes(given_one.to_bytes(), 2) == given_one


@pytest.mark.parametrize(
    ("names", "rare", "counts", "words"),
    [
        (["a", "b", "a"], [], [], "code 'a' is in the vocabulary twice"),
        (["a"], ["a"], [], "code 'a' is in the vocabulary twice"),
        ([""], [], [], "must be text of 1 to 200 bytes"),
        (["ä" * 101], [], [], "must be text of 1 to 200 bytes"),
        ([7], [], [], "must be text"),
        (["a"], [], [1, 2], "2 counts for 1 codes"),
        ([str(i) for i in range(MAX_NAMED + 1)], [], [], "1000001 codes and 0 rare ones: at most 1000000"),
    ],
)
def test_what_is_no_vocabulary(names: list[str], rare: list[str], counts: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Vocabulary(tuple(names), tuple(counts), tuple(rare))


@pytest.mark.parametrize("fields", [{"min_count": 0}, {"max_codes": 0}, {"max_codes": MAX_NAMED + 1}])
def test_rules_out_of_range(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be 1 to 1000000"):
        VocabularyRule(**fields)


def forged(**columns: object) -> bytes:
    table = {"code": ["a", "b"], "id": [2, 3], "records": [1, 1]} | columns
    types = {"code": pa.string(), "id": pa.int32(), "records": pa.int64()}
    fields = [pa.field(name, types[name], nullable=False) for name in table]
    stream = io.BytesIO()
    pq.write_table(pa.table(table, pa.schema(fields)), stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "rows", "words"),
    [
        (forged(), 3, "it has 2 rows, not 3"),
        (forged(), 1 << 23, "8388608 codes are claimed"),
        (forged(id=[3, 2]), 2, "do not count up"),
        (forged(id=[1, 2]), 2, "do not count up"),
        (forged(code=["a", "a"]), 2, "code 'a' is in the vocabulary twice"),
        (b"PAR1", 2, "no Parquet file"),
    ],
)
def test_files_that_are_no_vocabulary(data: bytes, rows: int, words: str) -> None:
    with pytest.raises(TableError, match=words):
        Vocabulary.from_bytes(data, rows)
