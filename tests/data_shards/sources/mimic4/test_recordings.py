"""ECGs as their headers say: rate, order of leads, gains and units, gaps; what is unusable is refused or counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_shards import Objects, create_source
from data_shards.sources.mimic4.recordings import LEADS, read_ecg
from tests.data_shards.sources.build import read
from tests.data_shards.sources.mimic4.build import OFFICIAL_LEADS, lay_ecg, lay_mimic

PLACE = "ecg/files/p1000/p10000032/s40689238/40689238"
COUNTS = np.arange(60)[:, None] * 12 + np.arange(12)  # every sample another number
ORDER = [OFFICIAL_LEADS.index(lead) for lead in LEADS]


def test_leads_are_found_by_name_and_samples_averaged_in_float(tmp_path: Path) -> None:
    lay_ecg(tmp_path / "rec.1", COUNTS, gain="100(50)/uV")
    ecg = read_ecg(tmp_path / "rec.1", 7)
    means = ((COUNTS[:56, ORDER] - 50) / 100 / 1000).reshape(8, 7, 12).mean(axis=1)  # µV to mV
    np.testing.assert_allclose(ecg.values_LC, means, rtol=1e-6)
    assert ecg.gaps == 0 and ecg.counts == {
        "ecg_samples_cut": 4, "waveforms_converted_to_another_unit": 1, "waveform_checksums_differ": 0,
        "waveform_signals_without_gain": 0,
    }  # fmt: skip
    upper = tuple(lead.upper() for lead in OFFICIAL_LEADS)
    lay_ecg(tmp_path / "b", COUNTS, leads=upper, gain="100(50)/uV")
    np.testing.assert_array_equal(read_ecg(tmp_path / "b.hea", 7).values_LC, ecg.values_LC)


def test_samples_without_a_value_count_in_no_mean(tmp_path: Path) -> None:
    counts = np.full((10, 12), 100)
    counts[0:2, 0] = counts[5:10, 1] = -32768
    lay_ecg(tmp_path / "r", counts)
    ecg = read_ecg(tmp_path / "r", 5)
    assert ecg.gaps == 7 and ecg.values_LC[0].tolist() == [0.5] * 12
    assert ecg.values_LC[1].tolist() == [0.5, 0.0, *[0.5] * 10]  # nothing to take a mean of


def test_the_rate_is_the_headers(tmp_path: Path) -> None:
    seconds = np.arange(2500) / 250
    wave = np.round(1000 * np.sin(2 * np.pi * 3 * seconds))[:, None] * np.ones(12)
    lay_ecg(tmp_path / "r", wave, rate="250")
    with pytest.raises(
        ValueError, match=r"r has 250 samples per second, not 500; convert such ECGs to the 100 that are"
    ):
        read_ecg(tmp_path / "r", 5)
    ecg = read_ecg(tmp_path / "r", 5, resample=True)
    assert ecg.values_LC.shape == (1000, 12) and ecg.counts["ecg_resampled"] == 1
    expected = 5 * np.sin(2 * np.pi * 3 * np.arange(1000) / 100)  # three waves a second, as before
    np.testing.assert_allclose(ecg.values_LC[100:-100, 7], expected[100:-100], atol=0.05)
    lay_ecg(tmp_path / "s", wave, rate="100/1000(0)")
    same = read_ecg(tmp_path / "s", 5)
    np.testing.assert_allclose(same.values_LC[:, 3], wave[:, 3] / 200, rtol=1e-6)
    assert same.counts["ecg_at_packed_rate"] == 1


def test_leads_that_are_missing_twice_or_without_names(tmp_path: Path) -> None:
    lay_ecg(tmp_path / "r", COUNTS[:, :11], leads=OFFICIAL_LEADS[:11])
    with pytest.raises(ValueError, match=r"ECG .*r lacks lead V6 \(or has it twice\); it has I, II, III, aVR, aVF"):
        read_ecg(tmp_path / "r", 5)
    lay_ecg(tmp_path / "r", COUNTS, leads=("I", *OFFICIAL_LEADS[:11]))
    with pytest.raises(ValueError, match=r"lacks lead I, V6 \(or has it twice\)"):
        read_ecg(tmp_path / "r", 5)
    lay_ecg(tmp_path / "r", COUNTS, leads=("",) * 12)
    ecg = read_ecg(tmp_path / "r", 1)
    np.testing.assert_allclose(ecg.values_LC, COUNTS / 200, rtol=1e-6)
    assert ecg.counts["ecg_leads_without_names"] == 1


@pytest.mark.parametrize("damage", ["rate", "lead", "file"])
def test_an_unusable_ecg_is_refused_or_left_out_and_counted(tmp_path: Path, damage: str) -> None:
    folder = lay_mimic(tmp_path)
    lay_ecg(folder / PLACE, COUNTS, rate="360" if damage == "rate" else "500",
            leads=("II", *OFFICIAL_LEADS[1:]) if damage == "lead" else OFFICIAL_LEADS)  # fmt: skip
    if damage == "file":
        (folder / f"{PLACE}.dat").unlink()
    with pytest.raises(ValueError, match="40689238"):
        read("mimic4", {"path": str(folder)})
    records, notes = read("mimic4", {"path": str(folder), "ecg_unusable": "drop"})
    left = records["stay-30000001"].values["ecg"]
    assert isinstance(left, Objects) and left.times_N.tolist() == [18.0]  # the other one
    assert (notes["ecg_objects"], notes["ecg_unusable"]) == (1, 1)
    if damage == "rate":
        records, notes = read("mimic4", {"path": str(folder), "ecg_resample": True})
        both = records["stay-30000001"].values["ecg"]
        assert isinstance(both, Objects) and [np.asarray(ecg).shape for ecg in both.values] == [(17, 12), (10, 12)]
        assert notes["ecg_resampled"] == 1


def test_the_schema_names_the_leads_and_the_rate(tmp_path: Path) -> None:
    spec = create_source("mimic4", {"path": str(lay_mimic(tmp_path)), "ecg_step": 2}).schema.modalities[4]
    assert (spec.name, spec.channels, spec.rate, spec.unit) == ("ecg", LEADS, 250, "mV")
