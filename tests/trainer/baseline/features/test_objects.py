"""Pictures, waveforms and texts as numbers, against values worked out by hand."""

from __future__ import annotations

import numpy as np

from trainer.baseline.features.objects import OF_CHANNELS, WORDS, picture_names, pictures, texts, waveforms


def test_a_picture_is_a_thumbnail_and_its_edges() -> None:
    picture = np.zeros((1, 1, 16, 16), np.uint8)
    picture[..., 8:] = 200  # the right half is bright: edges run down, the gradient points to the right
    names = picture_names((1, 16, 16))
    found = dict(zip(names, pictures(picture)[0].tolist(), strict=True))
    assert len(names) == 64 + 16 * 8
    assert [found[f"grey_3_{column}"] for column in range(8)] == [0, 0, 0, 0, 200, 200, 200, 200]
    # The gradient is at columns 7 and 8, in cells 1 and 2, along direction 0.
    assert [found[f"edges_2_{cell}_0"] for cell in range(4)] == [0, 1, 1, 0]
    assert sum(found[f"edges_2_1_{direction}"] for direction in range(1, 8)) == 0
    turned = dict(zip(names, pictures(picture.transpose(0, 1, 3, 2))[0].tolist(), strict=True))
    assert [turned[f"edges_1_2_{direction}"] for direction in range(8)] == [0, 0, 0, 0, 1, 0, 0, 0]


def test_colours_have_thumbnails_of_their_own_and_small_pictures_are_themselves() -> None:
    picture = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    names = picture_names((3, 2, 2))
    found = dict(zip(names, pictures(picture)[0].tolist(), strict=True))
    assert [found[f"grey_{r}_{c}"] for r in range(2) for c in range(2)] == [4, 5, 6, 7]
    assert [found[f"channel2_{r}_{c}"] for r in range(2) for c in range(2)] == [8, 9, 10, 11]
    odd = pictures(np.ones((2, 1, 9, 1), np.float32))
    assert odd.shape == (2, len(picture_names((1, 9, 1)))) and odd[:, :8].tolist() == [[1] * 8] * 2


def test_a_wave_has_its_power_in_its_octave() -> None:
    time = np.arange(64)
    wave = 3 + 2 * np.cos(2 * np.pi * time * 24 / 64)  # 24 of at most 32 cycles: the upper octave
    slow = np.cos(2 * np.pi * time * 6 / 64)  # between 4 and 8: the third octave from above
    offsets = np.array([0, 64, 64])
    found = waveforms(offsets, np.stack([wave, slow], axis=1))
    fast, low = (dict(zip(OF_CHANNELS, row, strict=True)) for row in found[0].reshape(2, -1).tolist())
    np.testing.assert_allclose(
        [fast[name] for name in ("mean", "std", "band0", "band1")], [3, np.sqrt(2), 1, 0], atol=1e-6
    )
    np.testing.assert_allclose([low[f"band{band}"] for band in range(4)], [0, 0, 1, 0], atol=1e-6)
    # Of a cosine's power A² / 4 in each of two halves of the spectrum, one is counted: 64 * 2² / 4.
    np.testing.assert_allclose(fast["power"], np.log(64), atol=1e-6)
    assert np.isnan(found[1]).all()


def test_texts_are_hashed_words_and_pairs_of_them() -> None:
    found = texts(["cold cold", "cold", "", "warm day"])
    assert found.shape == (4, 1 + WORDS) and found[:, 0].tolist() == [9, 4, 0, 8]
    words = found[:, 1:]
    np.testing.assert_allclose((words**2).sum(axis=1), [1, 1, 0, 1], atol=1e-6)
    (cold,) = np.flatnonzero(words[1])
    # Twice `cold` and once `cold cold`: 2 and 1 over the root of 5.
    np.testing.assert_allclose(sorted(abs(words[0][words[0] != 0])), np.array([1, 2]) / np.sqrt(5), atol=1e-6)
    assert abs(words[0, cold]) == np.abs(words[0]).max() and (words[3] != 0).sum() == 3
