"""YAML as it is written: no key twice, plain words as YAML 1.2 has them, numbers that keep their text."""

from __future__ import annotations

import copy
import json

import pytest
from pydantic import BaseModel, ConfigDict

from data_shards.config import DataConfig
from data_shards.errors import YamlError
from data_shards.sources.mimic4.diagnoses import read_phenotypes
from data_shards.sources.tables.mapping import read_mapping
from data_shards.yaml_file import parse_yaml, read_as_1_1, read_yaml, to_yaml

TWICE = [
    ("a: 1\nb: {c: 1,\n  c: 2}\n", "key b.c is given twice, in line 2 and in line 3"),
    ("{a: 1, a: 2}", "key a is given twice, in line 1 at columns 2 and 8"),
    ("a:\n  - x: 1\n  - y: 1\n    y: 2\n", "key a[1].y is given twice, in line 3 and in line 4"),
    ("1: a\n'1': b\n", "key 1 is given twice, in line 1 and in line 2"),
    ("1: a\n1.0: b\n", "key 1.0 is given twice, in line 1 and in line 2"),
    ("0x10: a\n\n16: b\n", "key 16 is given twice, in line 1 and in line 3"),
    ("true: 1\nTrue: 2\n", "key True is given twice"),
    ("yes: 1\nno: 2\nyes: 3\n", "key yes is given twice, in line 1 and in line 3"),
    ("a: &x {q: 1}\nb:\n  <<: *x\n  <<: *x\n", "key b.<< is given twice, in line 3 and in line 4"),
    ("a: &x {q: 1, q: 2}\nb: *x\n", "key a.q is given twice"),
]


@pytest.mark.parametrize(("text", "sentence"), TWICE)
def test_a_key_twice_is_refused_with_both_lines(tmp_path, text, sentence):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(YamlError) as caught:
        read_yaml(path, "recipe")
    assert str(caught.value).startswith(f"recipe {path}: {sentence}")


def test_what_is_merged_may_be_said_otherwise_and_aliases_are_no_second_key():
    text = "a: &x {q: 1, r: 3}\nb: {<<: *x, q: 2}\nc: *x\n"
    assert parse_yaml(text, "x") == {"a": {"q": 1, "r": 3}, "b": {"q": 2, "r": 3}, "c": {"q": 1, "r": 3}}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        *((word, word) for word in ("no", "No", "yes", "on", "off", "y", "n", "=", "None", "NA", "nan")),
        *(
            (word, word)
            for word in ("012", "007", "1_000", "12:30", "2024-01-01", "2024-01-01T10:00:00Z", "0b1", "0o7")
        ),
        *(("true", True), ("False", False), ("~", None), ("null", None), ("", None)),
        *(("1e-3", 0.001), ("1E5", 1e5), (".5", 0.5), ("1.", 1.0), ("-2.50", -2.5), ("-.inf", -float("inf"))),
        *(("0", 0), ("-5", -5), ("+3", 3), ("0x1F", 31), ("'1'", "1")),
    ],
)
def test_plain_words_are_what_yaml_1_2_says(written, value):
    found = parse_yaml(f"a: {written}", "x")["a"]
    assert found == value and isinstance(found, type(value))


class _Model(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True)
    names: tuple[str, ...]
    keys: dict[str, int]
    rate: float
    steps: int
    flag: bool


def test_where_text_is_wanted_a_number_keeps_what_was_written():
    text = "{names: [1.10, 012, 1e5, 0x10, no, 7], keys: {1.10: 1, 010: 2}, rate: 1e-3, steps: 010, flag: yes}"
    model = _Model.model_validate(parse_yaml(text, "x"))
    assert model.names == ("1.10", "012", "1e5", "0x10", "no", "7")
    assert model.keys == {"1.10": 1, "010": 2}
    assert (model.rate, model.steps, model.flag) == (0.001, 10, True)
    assert type(model.rate) is float and type(model.steps) is int


def test_numbers_travel_as_numbers():
    tree = parse_yaml("{a: 1e-3, b: 1.10, c: 16}", "x")
    assert json.dumps(tree) == '{"a": 0.001, "b": 1.1, "c": 16}'
    again = copy.deepcopy(tree)
    assert again == tree and str(again["b"]) == "1.10"


def test_what_is_written_is_read_as_the_same():
    tree = {"z": ["1e-3", "no", "012", "true", "null", "1_000", "12:30", "0o7", "1.", ".5"], "a": [1e-5, 1e22, 3, None]}
    assert parse_yaml(to_yaml(tree), "x") == tree and list(parse_yaml(to_yaml(tree), "x")) == ["z", "a"]
    assert to_yaml(parse_yaml("[1e-3, no, 16]", "x"), one_line=True) == "[0.001, 'no', 16]\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1e999", "1e999 is beyond the largest number"),
        ("[" * 4000, "recursion"),
        ("!!int x", "is not valid YAML"),
        ("a: 1\n---\nb: 2", "holds 2 YAML documents"),
        ("\ta: 1", "is not valid YAML"),
        ("!!python/object:os.system {}", "is not valid YAML"),
    ],
)
def test_what_is_no_yaml_is_one_sentence(text, sentence):
    with pytest.raises(YamlError, match=sentence) as caught:
        parse_yaml(text, "space x.yaml")
    assert str(caught.value).startswith("space x.yaml") and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(YamlError, match=r"mapping file .*none.yaml cannot be read: No such file"):
        read_yaml(tmp_path / "none.yaml", "mapping file")
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    with pytest.raises(YamlError, match=r"latin.yaml cannot be read as UTF-8"):
        read_yaml(tmp_path / "latin.yaml", "mapping file")


def test_files_of_other_tools_are_read_as_they_read_them():
    assert read_as_1_1("a: no\n---\nb: 010\n", "x") == [{"a": False}, {"b": 8}]
    with pytest.raises(YamlError, match="key a is given twice, in line 3 and in line 4"):
        read_as_1_1("b: 1\n---\na: no\na: yes\n", "x")


MAPPING = """\
name: x
records: {{file: r.csv, key: id}}
modalities: {{a: {{kind: vector, columns: [1.10, 012]}}}}
tasks: {{y: {{kind: multiclass, column: y, classes: {classes}}}}}
"""


def test_classes_of_a_mapping_are_the_words_that_stand_there(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(MAPPING.format(classes="[no, yes, 1.0, 2024-01-01, 12:30, on]"))
    mapping = read_mapping(path)
    assert mapping.tasks["y"].classes == ("no", "yes", "1.0", "2024-01-01", "12:30", "on")
    assert mapping.modalities["a"].columns == ("1.10", "012")
    path.write_text(MAPPING.format(classes="[a, b]") + "name: y\n")
    with pytest.raises(ValueError, match=rf"mapping file {path}: key name is given twice, in line 1 and in line 5"):
        read_mapping(path)


def test_definitions_of_phenotypes_keep_their_zeros_and_each_name_once(tmp_path):
    definitions, codes = tmp_path / "d.yaml", tmp_path / "c.csv"
    codes.write_text("icd10cm,icd9cm\nA00,0010\n")
    definitions.write_text("cholera: {codes: [0010, 250.10]}\n")
    assert read_phenotypes(str(definitions), str(codes)).codes == {"0010": (0,), "25010": (0,)}
    definitions.write_text("cholera: {codes: [0010]}\nflu: {codes: [480]}\ncholera: {codes: [0011]}\n")
    with pytest.raises(ValueError, match="key cholera is given twice, in line 1 and in line 3"):
        read_phenotypes(str(definitions), str(codes))


def test_a_word_that_is_no_boolean_any_more_is_refused_where_nobody_knows_the_type():
    with pytest.raises(ValueError, match=r"storage_options.anon: no is text in YAML 1.2; write true or false"):
        DataConfig.model_validate(parse_yaml("{url: s3://a/b, storage_options: {anon: no}}", "x"))
