"""A generative model whose best possible predictions are known: the ground truth behind ``synthetic``.

A record has a class k (uniform over K) and a score z ~ N(0, 1). Every numeric modality shows, at each of its points p,

    x_p = template[k, p] + z * direction[p] + sigma * noise,      noise ~ N(0, 1),

and a text shows words drawn from class-dependent frequencies. Which points are observed never depends on (k, z). Then,
given everything observed, with v = direction, r_k = x - template[k], a = 1 + |v|^2 / sigma^2, b_k = r_k . v / sigma^2,

    log p(x | k) = -|r_k|^2 / (2 sigma^2) + b_k^2 / (2 a) - log(a) / 2 + const,      z | x, k ~ N(b_k / a, 1 / a),

so the posterior is exact, whatever is missing. |r_k|^2, b_k and a are sums over modalities: evidence adds up.
Shapes: K classes, n points, c channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import erf, sqrt

import numpy as np

HARMONICS = 3
WORDS = tuple(f"{a}{b}" for a in ("ba", "de", "ki", "lo", "mu", "ra", "si", "tu") for b in ("n", "r", "s", "t"))


@dataclass
class Evidence:
    """Sufficient statistics of what was observed: sums over points, so records' parts can be added.

    Attributes:
        square_K: |r_k|^2 / sigma^2. cross_K: r_k . v / sigma^2. energy: |v|^2 / sigma^2. words_K: log p(words | k).
    """

    square_K: np.ndarray
    cross_K: np.ndarray
    energy: float = 0.0
    words_K: np.ndarray = field(default_factory=lambda: np.zeros(1))

    def __add__(self, other: Evidence) -> Evidence:
        return Evidence(
            self.square_K + other.square_K,
            self.cross_K + other.cross_K,
            self.energy + other.energy,
            self.words_K + other.words_K,
        )

    def class_posterior(self) -> np.ndarray:
        """p(k | x) [K]."""
        log = -0.5 * self.square_K + self.cross_K**2 / (2 * (1 + self.energy)) + self.words_K
        weight = np.exp(log - log.max())
        return weight / weight.sum()

    def score_mean(self) -> float:
        """E[z | x]: the best guess of the score under squared error."""
        return float(self.class_posterior() @ self.cross_K / (1 + self.energy))

    def positive_probability(self) -> float:
        """P(z > 0 | x)."""
        deviations = self.cross_K / sqrt(1 + self.energy)
        return float(self.class_posterior() @ np.array([0.5 * (1 + erf(d / sqrt(2))) for d in deviations]))


class Signal:
    """Templates of one numeric modality as smooth functions of a place in [0, 1], per channel.

    Args:
        rng: draws the templates. classes: K. channels: c. points: expected number of observed points in a record.
        noise: standard deviation of the noise, scaled by sqrt(points) so that every modality tells about as much.
    """

    def __init__(self, rng: np.random.Generator, classes: int, channels: int, points: float, noise: float) -> None:
        shape = (classes + 1, channels, HARMONICS)
        self.amplitude = rng.standard_normal(shape) / sqrt(HARMONICS)
        self.phase = rng.uniform(0, 2 * np.pi, shape)
        self.classes, self.sigma = classes, noise * sqrt(points) / 2
        # Real channels differ in unit; a model must normalise them.
        self.offset = rng.normal(0, 20, channels)
        self.gain = np.exp(rng.normal(0, 1, channels))

    def means(self, place_n: np.ndarray, channel_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(template [K, n], direction [n]) at the given places."""
        waves = np.arange(1, HARMONICS + 1) * 2 * np.pi * place_n[:, None]
        all_means = (self.amplitude[:, channel_n] * np.sin(waves + self.phase[:, channel_n])).sum(-1)
        return all_means[: self.classes], all_means[self.classes]

    def draw(
        self, rng: np.random.Generator, label: int, score: float, place_n: np.ndarray, channel_n: np.ndarray
    ) -> np.ndarray:
        """float32 [n]: observed values."""
        template, direction = self.means(place_n, channel_n)
        value = template[label] + score * direction + self.sigma * rng.standard_normal(len(place_n))
        return (self.offset[channel_n] + self.gain[channel_n] * value).astype(np.float32)

    def evidence(self, value_n: np.ndarray, place_n: np.ndarray, channel_n: np.ndarray) -> Evidence:
        """What the values tell about class and score."""
        template, direction = self.means(place_n, channel_n)
        plain = (value_n.astype(np.float64) - self.offset[channel_n]) / self.gain[channel_n]
        rest = (plain - template) / self.sigma
        direction = direction / self.sigma
        return Evidence((rest**2).sum(1), rest @ direction, float(direction @ direction), np.zeros(self.classes))


class Vocabulary:
    """Class-dependent word frequencies of one text modality.

    Args:
        rng: draws them. classes: K. words: expected number of words in a text. noise: as in ``Signal``.
    """

    def __init__(self, rng: np.random.Generator, classes: int, words: float, noise: float) -> None:
        tilt = rng.standard_normal((classes, len(WORDS))) * 2 / (noise * sqrt(words))
        weight = np.exp(tilt)
        self.frequency = weight / weight.sum(1, keepdims=True)
        self.words, self.classes = words, classes

    def draw(self, rng: np.random.Generator, label: int) -> str:
        """A text of at least one word."""
        count = 1 + rng.poisson(self.words - 1)
        return " ".join(WORDS[w] for w in rng.choice(len(WORDS), count, p=self.frequency[label]))

    def evidence(self, text: str) -> Evidence:
        """What the words tell about the class."""
        numbers = [WORDS.index(word) for word in text.split()]
        zero = np.zeros(self.classes)
        return Evidence(zero, zero, 0.0, np.log(self.frequency[:, numbers]).sum(1))


# Of a life: its hazard is proportional to exp(z), its shape that of Weibull, and censoring is even over a span.
SHAPE, SCALE, SPAN = 1.5, 10.0, 20.0


def draw_lifetime(rng: np.random.Generator, score: float) -> np.ndarray:
    """[2]: time, and 1 if it was seen or 0 if it was censored before.

    Of two records the one with the higher z is first with chance 1 / (1 + exp(-difference)), so the best that can be
    known of who is first is E[z | x] (exactly so where the class is certain).
    """
    life = SCALE * (rng.exponential() * np.exp(-score)) ** (1 / SHAPE)
    watched = rng.uniform(0, SPAN)
    return np.array([min(life, watched), float(life <= watched)])


def concordance(risk_n: np.ndarray, life_n2: np.ndarray) -> float:
    """Share of the pairs of which it is known who was first, in which that one has more risk; equal risks count half.

    Distinct times; NaN where nothing is known.
    """
    agree = pairs = 0.0
    for risk, (time, _) in zip(risk_n[life_n2[:, 1] == 1], life_n2[life_n2[:, 1] == 1], strict=True):
        later_n = life_n2[:, 0] > time
        agree += float((risk > risk_n[later_n]).sum() + (risk == risk_n[later_n]).sum() / 2)
        pairs += float(later_n.sum())
    return agree / pairs if pairs else float("nan")


def auroc(score_n: np.ndarray, label_n: np.ndarray) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative, ties counted half."""
    _, inverse, counts = np.unique(score_n, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = int(label_n.sum())
    negatives = len(label_n) - positives
    if not positives or not negatives:
        return float("nan")
    return float((rank[label_n == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))
