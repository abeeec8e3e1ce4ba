"""A small ward as data frames: one row a stay, observations in long form, notes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

STAYS = 60
SMALL: dict[str, Any] = {
    "model": {"dim": 16, "layers": 1, "heads": 2, "bins": 4, "moe": {"experts": 4, "top_k": 2}},
    "training": {"epochs": 2, "batch_size": 16, "log_every": 1},
    "tracking": {"mlflow": False},
}


def stays() -> pd.DataFrame:
    """Age has empty cells; every third stay ends badly."""
    number = np.arange(STAYS)
    age = np.where(number % 7 == 0, np.nan, 40.0 + number % 30)
    return pd.DataFrame(
        {
            "stay": [f"s{n}" for n in number],
            "age": age,
            "sex": np.where(number % 2, "f", "m"),
            "died": np.where(number % 3, 0, 1),
        }
    )


def vitals() -> pd.DataFrame:
    """Four observations a stay, and two of a stay that there is not."""
    number = np.repeat(np.arange(STAYS), 4)
    hour = np.tile([0.5, 1.0, 6.0, 12.0], STAYS)
    what = np.tile(["HR", "SpO2", "HR", "SpO2"], STAYS)
    value = np.where(what == "HR", 80.0 + 10 * (number % 3 == 0), 97.0)
    rows = pd.DataFrame({"stay": [f"s{n}" for n in number], "hour": hour, "what": what, "value": value})
    stranger = pd.DataFrame({"stay": ["x", "x"], "hour": [1.0, 2.0], "what": ["HR", "HR"], "value": [60.0, 61.0]})
    return pd.concat([rows, stranger], ignore_index=True)


def notes() -> pd.DataFrame:
    """Half of the stays have one."""
    number = np.arange(0, STAYS, 2)
    texts = [f"patient number {n} had a quiet night and eats well" for n in number]
    return pd.DataFrame({"stay": [f"s{n}" for n in number], "hour": 3.0 + number % 5, "text": texts})
