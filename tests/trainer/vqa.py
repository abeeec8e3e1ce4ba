"""A small packed data set of pictures and questions in the layout of easy-VQA, and recipes on it."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_shards import create_source, pack
from tests.trainer.tiny import changed
from tests.trainer.towers import FAMILIES
from trainer.config.run_config import RunConfig

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


def archive(folder: Path, pictures: int = 24) -> Path:
    """`easy_vqa_data.tar.gz` with squares of one colour and three questions each, and a member nobody should read."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "easy_vqa_data.tar.gz"
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w:gz") as out:
        for part, number in (("train", pictures), ("test", pictures // 2)):
            questions = []
            for picture in range(number):
                colour = ("red", "blue")[int(rng.integers(2))]
                pixels = np.full((64, 64, 3), 250, np.uint8)
                top, left = rng.integers(0, 32, 2)
                pixels[top : top + 32, left : left + 32] = COLOURS[colour]
                stream = io.BytesIO()
                Image.fromarray(pixels).save(stream, "png")
                add(out, f"data/{part}/images/{picture}.png", stream.getvalue())
                questions.append(["what color is the shape?", colour, picture])
                for asked in COLOURS:
                    questions.append([f"is there a {asked} shape?", "yes" if asked == colour else "no", picture])
            add(out, f"data/{part}/questions.json", json.dumps(questions).encode())
        add(out, "data/answers.txt", b"red\nblue\nyes\nno\n")
        add(out, "../outside.txt", b"never")
    return path


def add(out: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    out.addfile(member, io.BytesIO(data))


def packed_vqa(folder: Path, **options: Any) -> str:
    """Pack it at the size that the tiny towers take."""
    archive(folder / "source")
    source = create_source("easy_vqa", {"path": str(folder / "source"), "size": 16, "val": 0.25, **options})
    pack(source, str(folder / "data"), chunk_records=8)
    return str(folder / "data")


def recipe(data: str, storage: Path, name: str = "run", **changes: Any) -> RunConfig:
    """Two tiny random towers, fine-tuned; `changes` are dotted keys with underscores doubled."""
    tree: dict[str, Any] = {
        "job": "mope",
        "name": name,
        "data": {"url": data},
        "mope": {
            "image": {"family": "vit", "config": FAMILIES["vit"]},
            "text": {"family": "bert", "config": FAMILIES["bert"]},
            "k": 3,
            "static_length": 2,
            "dynamic_length": 2,
            "mapper_hidden": 8,
            "head_input": "both",
        },
        "optim": {"lr": 0.01},
        "training": {"epochs": 2, "batch_size": 12, "log_every": 1, "storage": str(storage), "tasks": ["answer"]},
        "tracking": {"mlflow": False},
    }
    return changed(tree, changes)
