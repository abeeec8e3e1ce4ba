"""The sources: official files of PhysioNet 2012, handwritten digits, and planted data with a known optimum."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data_shards import (
    DataConfig,
    PathError,
    Record,
    Series,
    SeriesGroup,
    StepLoader,
    create_source,
    open_manifest,
    pack,
    summary,
)
from data_shards.records.check import validate
from data_shards.sources import SOURCES, source_class
from data_shards.sources.base import hashed_part
from data_shards.sources.mimic4.diagnoses import read_phenotypes
from data_shards.sources.physionet2012 import STATIC
from data_shards.sources.planted import auroc
from data_shards.sources.synthetic import Synthetic
from tests.data_shards.build import same_record
from tests.launch.commands import ROOT, environment, last_json, python

HEAD = "Time,Parameter,Value"


def stay(record: str, age: str, gender: str, height: str, icu: str, weight: str, *lines: str) -> str:
    """Text of one official file: descriptors at 00:00, then observations."""
    names = ("RecordID", "Age", "Gender", "Height", "ICUType", "Weight")
    first = [f"00:00,{n},{v}" for n, v in zip(names, (record, age, gender, height, icu, weight), strict=True)]
    return "\n".join([HEAD, *first, *lines]) + "\n"


EARLY = ("00:07,HR,73", "00:07,GCS,15", "01:30,HR,80", "01:30,HR,81")
STAYS = {
    "a": {
        "100001": stay(
            *("100001", "54", "0", "-1", "4", "-1"), *EARLY, "47:59,NIDiasABP,-1", "48:00,pH,7.4"
        ),
        "100002": stay(
            *("100002", "70", "1", "180.3", "1", "80", "00:00,Weight,81", "00:10,,3.1", "00:10,HR,"),
            *("02:00,Weight,82", "02:00,TroponinT,0.1"),
        ),
        "100003": stay("100003", "70", "-1", "-1", "2", "60"),
    },
    "b": {"200001": stay("200001", "33", "1", "170", "3", "70", "10:15,Temp,36.5")},
}  # fmt: skip
OUTCOMES = {"100001": "6,1,5,-1,0", "100002": "16,8,-1,-1,1", "100003": "1,1,8,-1,0", "200001": "1,1,8,3,0"}


def lay_out(folder: Path, archive: bool) -> Path:
    """The official layout: set a as a folder or an archive, set b as the other."""
    for name, stays in STAYS.items():
        if archive == (name == "a"):
            with tarfile.open(folder / f"set-{name}.tar.gz", "w:gz") as tar:
                for record, text in stays.items():
                    info = tarfile.TarInfo(f"set-{name}/{record}.txt")
                    info.size = len(text)
                    tar.addfile(info, io.BytesIO(text.encode()))
        else:
            (folder / f"set-{name}").mkdir()
            for record, text in stays.items():
                (folder / f"set-{name}" / f"{record}.txt").write_text(text)
        rows = [f"{record},{OUTCOMES[record]}" for record in stays]
        header = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"
        (folder / f"Outcomes-{name}.txt").write_text("\n".join([header, *rows]) + "\n")
    return folder


def by_key(records: list[Record]) -> dict[str, Record]:
    return {record.key: record for record in records}


def rows(value: object) -> list[tuple[float, int, float]]:
    assert isinstance(value, Series)
    columns = (value.times_O, value.channels_O, value.values_O)
    return [(round(float(t), 3), int(c), round(float(v), 3)) for t, c, v in zip(*columns, strict=True)]


@pytest.mark.parametrize("archive", [True, False])
def test_physionet_files_become_events_and_descriptors(tmp_path: Path, archive: bool) -> None:
    source, notes = create_source("physionet2012", {"path": str(lay_out(tmp_path, archive))}), Counter[str]()
    records = by_key([record for unit in source.units() for record in source.read(unit, notes)])
    assert notes == {"stays": 4, "stays_without_observation": 1, "malformed_lines": 2, "observations": 10}
    assert sum(len(v) for r in records.values() for v in r.values.values() if isinstance(v, Series)) == 10
    one = records["100001"]
    assert one.values.keys() == {"vitals", "neuro_vent_output", "noninvasive_bp", "blood_gas", "static"}
    assert rows(one.values["vitals"]) == [(0.117, 0, 73.0), (1.5, 0, 80.0), (1.5, 0, 81.0)]  # both of 01:30 are kept
    assert rows(one.values["noninvasive_bp"]) == [(47.983, 1, -1.0)]  # -1 means missing in descriptors only
    assert rows(one.values["blood_gas"]) == [(48.0, 0, 7.4)]
    two = records["100002"]
    weights = [(0.0, 4, 81.0), (2.0, 4, 82.0)]  # the first at 00:00 is the descriptor, all others are observed
    assert rows(two.values["neuro_vent_output"]) == weights
    static = dict(zip(STATIC, two.values["static"].tolist(), strict=True))  # type: ignore[union-attr]
    assert static == pytest.approx(
        {"age": 70, "gender": 1, "height": 180.3, "icu_coronary": 1, "icu_cardiac_surgery": 0, "icu_medical": 0,
         "icu_surgical": 0, "weight": 80, "age_known": 1, "gender_known": 1, "height_known": 1, "icu_known": 1,
         "weight_known": 1}
    )  # fmt: skip
    unknown = dict(zip(STATIC, one.values["static"].tolist(), strict=True))  # type: ignore[union-attr]
    assert (unknown["height"], unknown["height_known"], unknown["weight_known"], unknown["gender_known"]) == (
        0,
        0,
        0,
        1,
    )
    assert one.targets == {"in_hospital_death": 0.0, "los_gt_7": 0.0, "length_of_stay": 5.0}
    assert two.targets == {"in_hospital_death": 1.0, "los_gt_7": None, "length_of_stay": None}
    assert records["200001"].targets["los_gt_7"] == 1.0
    assert all(r.splits.keys() == {"default"} for r in records.values())


def test_physionet_descriptors_as_codes(tmp_path: Path) -> None:
    source = create_source("physionet2012", {"path": str(lay_out(tmp_path, True)), "static": "codes"})
    notes = Counter[str]()
    records = by_key([record for unit in source.units() for record in source.read(unit, notes)])
    for record in records.values():
        validate(source.schema, record)
    told = {key: record.values["descriptors"].codes for key, record in records.items()}  # type: ignore[union-attr]
    assert told == {
        "100001": ["gender=female", "icu=surgical"],
        "100002": ["gender=male", "icu=coronary"],
        "200001": ["gender=male", "icu=medical"],
    }
    numbers = {key: record.values["static"].tolist() for key, record in records.items()}  # type: ignore[union-attr]
    assert numbers["100001"] == [54, 0, 0, 1, 0, 0] and numbers["200001"] == [33, 170, 70, 1, 1, 1]
    assert numbers["100002"] == pytest.approx([70, 180.3, 80, 1, 1, 1])
    assert source.schema.modality_names[-2:] == ("descriptors", "static") and not notes["descriptors_unknown"]


def test_a_physionet_stay_without_known_categories_has_no_codes(tmp_path: Path) -> None:
    lay_out(tmp_path, False)
    unknown = stay("100001", "54", "-1", "-1", "9", "-1", *EARLY)
    (tmp_path / "set-a" / "100001.txt").write_text(unknown)
    source = create_source("physionet2012", {"path": str(tmp_path), "static": "codes"})
    notes = Counter[str]()
    records = by_key([record for unit in source.units() for record in source.read(unit, notes)])
    assert "descriptors" not in records["100001"].values and notes["descriptors_unknown"] == 2
    assert records["100001"].values["static"].tolist() == [54, 0, 0, 1, 0, 0]  # type: ignore[union-attr]


def test_physionet_splits_and_groups_from_files(tmp_path: Path) -> None:
    lay_out(tmp_path, True)
    (tmp_path / "splits.csv").write_text("RecordID,s1,s2\n100001,train,test\n100002,val,\n200001,test,train\n")
    groups = {"heart": ["HR", "GCS"], "rest": ["NIDiasABP", "pH", "Weight", "TroponinT", "Temp"]}
    (tmp_path / "modalities.json").write_text(json.dumps({"modalities": groups}))
    options = {"path": str(tmp_path), "splits": str(tmp_path / "splits.csv")}
    source = create_source("physionet2012", options)
    report = pack(source, str(tmp_path / "out"), workers=2)
    assert report["splits"] == {"s1": {"train": 1, "val": 1, "test": 1}, "s2": {"test": 1, "train": 1}}
    assert report["source"]["left_out"] == "1 stays hold no observation"
    assert open_manifest(str(tmp_path / "out")).schema.modality_names == ("heart", "rest", "static")
    (tmp_path / "splits.csv").write_text("RecordID,s1\n100001,train\n")
    with pytest.raises(ValueError, match=r"stay 100002 is not in .*splits\.csv"):
        list(create_source("physionet2012", options).records())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("01:00,Unheard,3", "unknown parameter"),
        ("48:01,HR,3", "time outside 00:00 to 48:00"),
        ("1:00,HR,3", "time outside"),
        ("01:00,HR,abc", "could not convert"),
    ],
)
def test_physionet_lines_that_make_no_sense(tmp_path: Path, line: str, words: str) -> None:
    lay_out(tmp_path, False)
    path = tmp_path / "set-a" / "100001.txt"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=words):
        list(create_source("physionet2012", {"path": str(tmp_path)}).records())


def test_physionet_folders_that_lack_something(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds neither set-a nor"):
        create_source("physionet2012", {"path": str(tmp_path)})
    lay_out(tmp_path, True)
    with pytest.raises(ValueError, match=r"splits file .* does not exist"):
        create_source("physionet2012", {"path": str(tmp_path), "splits": str(tmp_path / "none.csv")})
    (tmp_path / "Outcomes-b.txt").unlink()
    with pytest.raises(ValueError, match=r"has set-b but no Outcomes-b\.txt"):
        create_source("physionet2012", {"path": str(tmp_path)})


@pytest.mark.long
def test_physionet_completely(tmp_path: Path) -> None:
    """Every observation of the published data arrives; numbers are those of the data's own description."""
    folder = Path(__file__).parents[4] / "shared" / "data" / "physionet2012"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: the challenge's data is not part of this repository")
    options = {"path": str(folder), "splits": str(folder / "raindrop_splits.csv")}
    report = pack(create_source("physionet2012", options), str(tmp_path), workers=2)
    assert (report["records"], report["observations"]) == (11_988, 5_211_415)
    assert report["source"]["notes"] == {
        "malformed_lines": 2403, "observations": 5_211_415, "stays": 12_000, "stays_without_observation": 12,
    }  # fmt: skip
    assert {s: sum(parts.values()) for s, parts in report["splits"].items()} == dict.fromkeys(
        ("split1", "split2", "split3"), 11_988
    )
    manifest = open_manifest(str(tmp_path))
    death = manifest.statistics["split1"].tasks["in_hospital_death"]
    assert death.labelled == manifest.splits["split1"]["train"] and 0.13 < death.mean[0] < 0.15
    loader, events = StepLoader(manifest, DataConfig(url=str(tmp_path), split="split1"), "test", 512, shuffle=False), 0
    for step in loader.steps(0):
        group = step.micro_batches[0].groups["series"]
        assert isinstance(group, SeriesGroup)
        events += len(group.values_O)
    assert events > 400_000


def test_digits_are_complete_deterministic_and_missing_as_asked() -> None:
    source = create_source("digits", {"missing": "0.2"})
    records = list(source.records())
    assert len(records) == 1797
    assert Counter(r.splits["default"] for r in records) == {"train": 1258, "val": 180, "test": 359}
    present = np.array([[name in r.values for name in source.schema.modality_names] for r in records])
    assert present.any(axis=1).all() and abs(present.mean() - 0.8) < 0.01
    again = list(islice(create_source("digits", {"missing": 0.2, "seed": 0}).records(), 100))
    assert all(same_record(a, b) for a, b in zip(again, records, strict=False))
    other = list(islice(create_source("digits", {"seed": 1}).records(), 100))
    assert [r.values.keys() for r in other] != [r.values.keys() for r in records[:100]]
    assert {m.kind for m in source.schema.modalities} == {"image", "series", "waveform", "vector", "text"}
    for record in records[:50]:
        validate(source.schema, record)


def test_every_view_of_a_digit_carries_the_picture() -> None:
    """Text, raster and image hold the pixels themselves; Fourier and Zernike vectors give back a close picture."""
    from data_shards.sources.digits import LEVELS, _fourier_plan, _pictures, _zernike_basis

    source, images = create_source("digits", {"missing": 0}), _pictures()[0]
    for number, record in enumerate(islice(source.records(), 20)):
        picture, values = images[number], record.values
        assert np.array_equal(np.asarray(values["raster"]).reshape(8, 8), picture)
        assert np.array_equal(values["image"][0] / 15, picture)  # type: ignore[index,operator]
        levels = np.array([[LEVELS.index(c) for c in line] for line in values["text"].split("\n")])  # type: ignore[union-attr]
        assert np.abs(levels * 16 / 9 - picture).max() < 16 / 9
        scan = values["rows"]
        assert isinstance(scan, Series) and 0.5 < len(scan) / 64 < 0.9
        assert np.array_equal(scan.values_O, picture[scan.times_O.astype(int), scan.channels_O])
        spectrum = np.zeros((8, 8), complex)
        half = len(values["fourier"]) // 2
        for place, (y, x) in enumerate(_fourier_plan()):
            spectrum[y, x] = values["fourier"][place] + 1j * values["fourier"][half + place]  # type: ignore[index,operator]
            spectrum[-y % 8, -x % 8] = spectrum[y, x].conjugate()
        assert error(np.fft.ifft2(spectrum).real, picture) < 0.35
        basis = _zernike_basis()
        solved = basis.T @ np.linalg.lstsq(basis @ basis.T, values["zernike"], rcond=None)[0]  # type: ignore[arg-type]
        assert error(solved.reshape(8, 8), picture) < 0.45


def error(a: np.ndarray, b: np.ndarray) -> float:
    """Relative root mean square difference."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_synthetic_optimum_is_calibrated() -> None:
    """The exact posterior, computed from the records alone, must be right as often as it says."""
    source = create_source("synthetic", {"records": 1500, "noise": 2.5, "missing": 0.4})
    assert isinstance(source, Synthetic)
    records = list(source.records())
    found = [source.evidence(record) for record in records]
    posterior = np.stack([e.class_posterior() for e in found])
    label = np.array([r.targets["label"] for r in records], int)
    confident = posterior.max(1)
    right = posterior.argmax(1) == label
    assert abs(right.mean() - confident.mean()) < 0.035  # about three standard errors
    for low, high in ((0.25, 0.5), (0.5, 0.8), (0.8, 1.01)):
        group = (confident >= low) & (confident < high)
        assert abs(right[group].mean() - confident[group].mean()) < 4 * (0.25 / group.sum()) ** 0.5
    positive = np.array([r.targets["positive"] for r in records], float)
    chance = np.array([e.positive_probability() for e in found])
    assert abs(positive.mean() - chance.mean()) < 0.035
    score, guess = np.array([r.targets["score"] for r in records], float), np.array([e.score_mean() for e in found])
    slope = np.polyfit(guess, score, 1)[0]  # a best guess is neither too bold nor too shy
    assert abs(slope - 1) < 0.08


def test_synthetic_options_do_what_they_say(tmp_path: Path) -> None:
    options = {"modalities": "series:2,text:1", "records": 300, "classes": 3, "missing": 0, "irregularity": 0}
    report = pack(create_source("synthetic", options), str(tmp_path))
    assert report["source"]["best_score_records"] == report["splits"]["default"]["test"]
    best = report["source"]["best_score"]
    assert (
        1 / 3 < best["label"]["accuracy"] <= 1 and 0.5 < best["positive"]["auroc"] <= 1 and 0 < best["score"]["r2"] < 1
    )
    assert open_manifest(str(tmp_path)).source["best_score"] == best
    record = next(create_source("synthetic", options).records())
    assert record.values.keys() == {"series_0", "series_1", "text_0"}
    series = record.values["series_0"]
    assert isinstance(series, Series)
    for channel in range(4):
        steps = np.diff(series.times_O[series.channels_O == channel])
        assert steps == pytest.approx(np.full(len(steps), steps.mean()), rel=1e-3)
    absent = [len(r.values) for r in create_source("synthetic", {"missing": 0.9, "records": 200}).records()]
    assert min(absent) == 1 and np.mean(absent) < 1.6


def test_less_noise_and_more_modalities_raise_the_optimum() -> None:
    def accuracy(**options: object) -> float:
        source = create_source("synthetic", {"records": 1200, "modalities": "series:1,vector:1,image:1", **options})
        return float(source.report(Counter())["best_score"]["label"]["expected_accuracy"])

    base = accuracy()
    assert accuracy(noise=1) > base + 0.05 > accuracy(noise=4) + 0.1
    assert accuracy(missing=0) > base + 0.02 > accuracy(missing=0.7) + 0.05


def test_auroc_against_the_definition() -> None:
    rng = np.random.default_rng(0)
    score, label = rng.integers(0, 8, 60).astype(float), rng.integers(0, 2, 60)
    wins = [(a > b) + 0.5 * (a == b) for a in score[label == 1] for b in score[label == 0]]
    assert auroc(score, label) == pytest.approx(np.mean(wins), abs=1e-12)
    assert np.isnan(auroc(score, np.ones(60)))


def test_hashed_parts_are_stable_and_in_proportion() -> None:
    shares = (("train", 0.8), ("val", 0.1), ("test", 0.1))
    parts = Counter(hashed_part(f"k{i}", shares) for i in range(5000))
    assert all(abs(parts[name] / 5000 - share) < 0.02 for name, share in shares)
    assert [i for i in range(40) if hashed_part(f"k{i}", shares) == "test"] == PINNED
    assert [i for i in range(40) if hashed_part(f"k{i}", shares, "1") == "test"] != PINNED


PINNED = [7, 23, 24, 29]  # parts must not change under existing data sets


def test_unknown_sources_and_options_list_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"is none of cmu_mosei, .*digits, .*synthetic, tables"):
        create_source("mnist")
    with pytest.raises(ValueError, match=r"source digits, option mising: .*options are missing, observed, seed"):
        create_source("digits", {"mising": 0.1})
    with pytest.raises(ValueError, match=r"option missing: Input should be less than 1"):
        create_source("digits", {"missing": "1.5"})
    with pytest.raises(ValueError, match="not kind:number"):
        create_source("synthetic", {"modalities": "video:2"})
    assert all(source_class(name).Options.model_fields for name in SOURCES)


def test_a_source_of_an_installed_package_is_packed_by_its_name(tmp_path):
    path = environment(PYTHONPATH=str(ROOT / "tests" / "outside"))
    out = str(tmp_path / "days")
    report = last_json(python("-m", "launch", "pack", "roll_call", "--out", out, "-o", "days=7", env=path))
    assert report["records"] == 7
    facts = summary(open_manifest(out))
    assert [(row["name"], row["present"]) for row in facts["modalities"]] == [("who", 4)]
    done = python("-m", "launch", "pack", "roll_call", "--out", str(tmp_path / "again"))
    assert done.returncode == 2 and "unknown source 'roll_call'; sources are cmu_mosei" in done.stderr
    assert not (tmp_path / "again").exists()


def test_options_that_name_files_are_read_by_the_one_rule(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(lay_out(tmp_path, archive=False)))
    (tmp_path / "splits#1.csv").write_text("RecordID,fold\n" + "".join(f"{key},train\n" for key in OUTCOMES))
    options = {"path": "~", "splits": "file:///" + str(tmp_path / "splits#1.csv").lstrip("/")}
    source = create_source("physionet2012", options)
    assert {record.splits["fold"] for record in source.records()} == {"train"}
    assert source.report(Counter())["options"] == {**options, "static": "vector"}, "as they were typed"


@pytest.mark.parametrize("name", [name for name in SOURCES if "path" in source_class(name).Options.model_fields])
def test_no_source_takes_files_of_another_machine(name):
    with pytest.raises(PathError, match="begins with the name of a machine, 'a'"):
        create_source(name, {"path": "file://a/b"})


@pytest.mark.parametrize("wrong", ["definitions", "icd10"])
def test_definitions_of_phenotypes_are_read_by_the_one_rule(wrong, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ccs.yaml").write_text("sepsis: {codes: ['0389']}\n")
    (tmp_path / "gem.csv").write_text("icd10cm,icd9cm\nA419,0389\n")
    options = {"definitions": "~/ccs.yaml", "icd10": "~/gem.csv"}
    assert read_phenotypes(**options).names == ("sepsis",)
    with pytest.raises(PathError, match="begins with the name of a machine, 'a'"):
        read_phenotypes(**options | {wrong: "file://a/b"})
