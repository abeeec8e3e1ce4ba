"""Codes when packing: numbered by the training part, whoever packs; unknown and rare ones are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards import DatasetSchema, Manifest, ManifestError, ModalitySpec, Record, TaskSpec, open_manifest, pack
from data_shards.packing import vocabularies
from data_shards.records.decoder import Decoder
from data_shards.records.record import Codes
from data_shards.records.vocabulary import Vocabulary, VocabularyRule
from data_shards.shards.manifest import FILE
from data_shards.shards.reader import read_index
from data_shards.shards.storage import Storage
from tests.data_shards.build import ListSource, make_set

SCHEMA = DatasetSchema(
    "codes",
    (
        ModalitySpec("drugs", "codes", timed=True, time_unit="hours", horizon=48.0, valued=True),
        ModalitySpec("sex", "codes"),
    ),
    (TaskSpec("y", "binary"),),
)


def codes(*names: str) -> Codes:
    return Codes(names, np.arange(len(names), dtype="f4"), np.full(len(names), 0.5, "f4"))


def record(key: str, drugs: Codes | None, sex: str | None, **splits: str) -> Record:
    values = {"drugs": drugs, "sex": Codes([sex]) if sex else None}
    return Record(key, {name: own for name, own in values.items() if own is not None}, {"y": 1.0}, splits)


RECORDS = [
    record("a", codes("aspirin", "aspirin", "heparin"), "f", one="train", two="test"),
    record("b", codes("heparin"), "f", one="train", two="test"),
    record("c", codes("heparin", "insulin"), "m", one="train", two="test"),
    record("d", codes("digoxin"), None, one="test", two="train"),
    record("e", codes("new", "aspirin", "new"), "x", one="test"),
    record("f", codes(), "m", one="val", two="val"),
    record("g", codes("in no split"), None),
]


class CodeSource(ListSource):
    def __init__(self, records: Sequence[Record] = RECORDS, schema: DatasetSchema = SCHEMA, **rules: object) -> None:
        super().__init__(schema, records, unit=2)
        self.vocabularies = rules.pop("given", {})  # type: ignore[assignment]
        self.vocabulary_rules = rules  # type: ignore[assignment]


def stored(manifest: Manifest, name: str) -> dict[str, list[str]]:
    """Key -> codes of a modality as they come back, in their order."""
    vocabulary, found = {m: manifest.vocabulary(m) for m in manifest.vocabularies}, {}
    decoder = Decoder(manifest.schema, vocabularies=vocabulary)
    for number, shard in enumerate(manifest.shards):
        index, data = read_index(manifest, number), manifest.storage.read(shard.name)
        for start, size, key in zip(index.start_n.tolist(), index.size_n.tolist(), index.keys, strict=True):
            values = decoder.record(data[start : start + size]).values
            if name in values:
                found[key] = list(values[name].codes)  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_learned_from_the_training_parts_of_all_splits(tmp_path: Path, workers: int) -> None:
    report = pack(CodeSource(), str(tmp_path), workers=workers)
    manifest = open_manifest(str(tmp_path))
    drugs, sex = manifest.vocabulary("drugs"), manifest.vocabulary("sex")
    # Records that have it, not occurrences
    assert (drugs.names, drugs.counts) == (("heparin", "aspirin", "digoxin", "insulin"), (3, 1, 1, 1))
    assert (sex.names, sex.counts, sex.rare) == (("f", "m"), (2, 1), ())
    spec = manifest.schema.modalities[0]
    assert (spec.codes, spec.vocabulary) == (6, drugs.digest)
    assert report["vocabularies"] == {"drugs": 6, "sex": 4}
    notes = manifest.source["notes"]
    assert (notes["codes_unknown.drugs"], notes["codes_unknown.sex"]) == (3, 1) and "codes_rare.drugs" not in notes
    assert notes["read"] == len(RECORDS), "the first pass counts nothing"
    found = stored(manifest, "drugs")
    assert found["a"] == ["aspirin", "aspirin", "heparin"] and found["f"] == []
    assert found["e"] == ["(unknown)", "aspirin", "(unknown)"] and found["g"] == ["(unknown)"]


def test_rare_ones_share_a_number(tmp_path: Path) -> None:
    pack(CodeSource(drugs=VocabularyRule(min_count=2)), str(tmp_path))
    manifest = open_manifest(str(tmp_path))
    assert manifest.vocabulary("drugs").names == ("heparin",)
    assert manifest.vocabulary("drugs").rare == ("aspirin", "digoxin", "insulin")
    assert stored(manifest, "drugs")["e"] == ["(unknown)", "(rare)", "(unknown)"]
    notes = manifest.source["notes"]
    assert (notes["codes_rare.drugs"], notes["codes_unknown.drugs"]) == (5, 3)


def test_whoever_packs_the_bytes_are_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    many = [
        record(f"r{i:03d}", codes(*(f"c{n}" for n in rng.zipf(1.4, 5) % 500)), None, one=("train", "test")[i % 2])
        for i in range(120)
    ]
    rule = VocabularyRule(min_count=2, max_codes=20)
    digests = {
        pack(CodeSource(many, drugs=rule), str(tmp_path / f"{workers}"), workers=workers)["digest"]
        for workers in (1, 3)
    }
    assert len(digests) == 1
    assert len(open_manifest(str(tmp_path / "3")).vocabulary("drugs").names) == 20


def test_a_vocabulary_that_is_given(tmp_path: Path) -> None:
    own = Vocabulary(("new", "aspirin"), (), ("heparin",))
    pack(CodeSource(given={"drugs": own}), str(tmp_path))
    manifest = open_manifest(str(tmp_path))
    assert manifest.vocabulary("drugs") == own
    assert stored(manifest, "drugs")["a"] == ["aspirin", "aspirin", "(rare)"]
    assert stored(manifest, "drugs")["e"] == ["new", "aspirin", "new"]
    # A schema that names it may be given with it
    named = replace(SCHEMA.modalities[0], codes=own.size, vocabulary=own.digest)
    schema = replace(SCHEMA, modalities=(named, SCHEMA.modalities[1]))
    report = pack(CodeSource(schema=schema, given={"drugs": own}), str(tmp_path / "again"))
    assert report["digest"] == manifest.digest


def test_vocabularies_that_do_not_fit(tmp_path: Path) -> None:
    own = Vocabulary(("aspirin",))
    named = replace(SCHEMA.modalities[0], codes=3, vocabulary="0" * 64)
    schema = replace(SCHEMA, modalities=(named, SCHEMA.modalities[1]))
    with pytest.raises(ValueError, match="the schema names vocabulary 000000000000, the source gives another"):
        pack(CodeSource(schema=schema, given={"drugs": own}), str(tmp_path))
    with pytest.raises(ValueError, match="modality drugs: the schema names a vocabulary, and the source does not"):
        pack(CodeSource(schema=schema), str(tmp_path))
    with pytest.raises(ValueError, match="has a vocabulary for y, which has no codes"):
        pack(CodeSource(y=VocabularyRule()), str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_more_codes_than_a_vocabulary_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabularies, "MAX_SEEN", 3)
    with pytest.raises(ValueError, match="modality drugs: the training part has more than 3 different codes"):
        pack(CodeSource(), str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_source_may_offer_its_codes_without_records(tmp_path: Path) -> None:
    class Quick(CodeSource):
        def codes(self, unit: tuple[int, int]) -> Iterator[tuple[Mapping[str, str], Mapping[str, Sequence[str]]]]:
            yield {"one": "train"}, {"drugs": ["aspirin", "aspirin"]}
            yield {"one": "test"}, {"drugs": ["heparin"]}

    pack(Quick(), str(tmp_path))
    found = open_manifest(str(tmp_path)).vocabulary("drugs")
    assert (found.names, found.counts) == (("aspirin",), (4,))  # of four units


def test_files_of_vocabularies_are_checked_and_replaced(tmp_path: Path) -> None:
    pack(CodeSource(), str(tmp_path))
    manifest = open_manifest(str(tmp_path))
    with pytest.raises(ValueError, match="has no vocabulary of 'y'; it has drugs, sex"):
        manifest.vocabulary("y")
    path = tmp_path / manifest.vocabularies["drugs"].name
    other = tmp_path / manifest.vocabularies["sex"].name
    data = path.read_bytes()
    path.write_bytes(data[:-2])
    with pytest.raises(ManifestError, match=f"table {path.name} is cut short"):
        manifest.vocabulary("drugs")
    manifest.vocabularies["drugs"] = manifest.vocabularies["sex"]
    with pytest.raises(ManifestError, match=f"table {other.name} is not the vocabulary that modality drugs names"):
        manifest.vocabulary("drugs")
    mine = tmp_path / "vocabulary-mine.parquet"
    mine.write_text("kept")
    make_set(tmp_path, 10, overwrite=True)
    assert not path.exists() and not other.exists() and mine.exists()
    left = {p.name.split("-")[0] for p in tmp_path.iterdir()}
    assert left == {"shard", "shards", "chunks", "sketches", "vocabulary", FILE}


def test_a_failed_pack_leaves_no_table_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(CodeSource):
        def report(self, notes: Counter[str]) -> dict[str, object]:
            return {"what": object()}  # no JSON: fails when the head is made, after the tables

    written, write = list[str](), Storage.write

    def watched(self: Storage, name: str, data: bytes) -> None:
        write(self, name, data)
        written.append(name.split("-")[0])

    monkeypatch.setattr(Storage, "write", watched)
    with pytest.raises(ValueError, match="serialize"):
        pack(Late(), str(tmp_path))
    assert written == ["shard", "shard"]  # what cannot be written as a head is found before any table is
    assert list(tmp_path.iterdir()) == []
