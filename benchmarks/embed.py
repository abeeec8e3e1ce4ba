"""Pretrained encoders inside a step against vectors that were embedded before: `python -m benchmarks.embed [--quick]`.

Random models of BERT's and ViT's kind, four layers of width 256, read two notes and a picture of each made-up record;
the model around them is FuseMoE in the engine that training uses. Steps take turns; CPU time, one thread. Then the verb
`embed` runs over a packed data set in one process and over Ray on two workers, by the clock; its rate counts from its
first shard on, and the one beside it has the start of Ray and the loading of encoders in it. Shares hold for these
sizes only: a larger encoder takes more of a step.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import arguments, build_model, engine_step, last_line, table, take_turns
from data_shards import Batch, DatasetSchema, ModalitySpec, TaskSpec, pack
from data_shards.loading.collate import Collator
from data_shards.records.codec import encode_record
from data_shards.records.columns import Columns
from data_shards.records.decoder import Decoder
from data_shards.records.record import Objects, Record
from data_shards.sources.base import Source, SourceOptions
from trainer.config.encoders import PretrainedConfig
from trainer.config.sections import ModelConfig
from trainer.inference.embedder import Embedder
from trainer.models.pretrained.load import load_encoder

SIDE, RECORDS, NOTES, WORDS_OF_A_NOTE = 64, 32, 2, 80
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(500))]
SCHEMA = DatasetSchema(
    "made-up",
    (
        ModalitySpec("notes", "text", timed=True, horizon=1.0, max_length=2000),
        ModalitySpec("cxr", "image", shape=(3, SIDE, SIDE), dtype="uint8"),
        ModalitySpec("labs", "vector", shape=(16,)),
    ),
    (TaskSpec("label", "binary"),),
)
SIZE = {"num_hidden_layers": 4, "num_attention_heads": 4}


class MadeUpOptions(SourceOptions):
    """How many records."""

    records: int = RECORDS


class MadeUp(Source):
    """Records with two notes, a picture and a few numbers."""

    Options = MadeUpOptions
    schema = SCHEMA

    def units(self) -> Sequence[Any]:
        return range(self.options.records)  # type: ignore[attr-defined]

    def read(self, unit: Any, notes: Counter[str]) -> Iterator[Record]:
        rng = np.random.default_rng(unit)
        lengths = rng.integers(WORDS_OF_A_NOTE // 2, WORDS_OF_A_NOTE, NOTES)
        texts = [" ".join(rng.choice(WORDS[5:], length)) for length in lengths.tolist()]
        values: dict[str, Any] = {
            "notes": Objects(np.sort(rng.random(NOTES)).astype(np.float32), texts),
            "cxr": rng.integers(0, 256, (3, SIDE, SIDE)).astype(np.uint8),
            "labs": rng.standard_normal(16).astype(np.float32),
        }
        yield Record(f"r{unit}", values, {"label": float(unit % 2)}, {"default": "train"})


def save_encoders(folder: Path, width: int) -> dict[str, PretrainedConfig]:
    """A random BERT and a random ViT in transformers' format."""
    from transformers import AutoConfig, AutoModel, BertTokenizerFast

    size = {**SIZE, "hidden_size": width, "intermediate_size": 4 * width}
    settings = {
        "notes": AutoConfig.for_model("bert", vocab_size=len(WORDS), max_position_embeddings=128, **size),
        "cxr": AutoConfig.for_model("vit", image_size=SIDE, patch_size=8, **size),
    }
    for name, config in settings.items():
        AutoModel.from_config(config).save_pretrained(folder / name)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=128).save_pretrained(folder / "notes")
    facts = '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "rescale_factor": 0.00392156862745098}'
    (folder / "cxr" / "preprocessor_config.json").write_text(facts)
    return {name: PretrainedConfig(source=str(folder / name)) for name in settings}


def columns() -> list[Columns]:
    """A batch's records as they are stored."""
    source, decoder = MadeUp(MadeUpOptions()), Decoder(SCHEMA)
    records = [record for unit in source.units() for record in source.read(unit, Counter())]
    return [decoder.columns(encode_record(record, SCHEMA)) for record in records]


def batch_of(schema: DatasetSchema, records: Sequence[Columns]) -> Batch:
    """All records at once."""
    return Collator(schema)(records, np.arange(len(records)))


def steps(configs: dict[str, PretrainedConfig], rounds: int) -> dict[str, float]:
    """Ratios of a step with the encoders inside, one on embedded data, and embedding."""
    encoders = {
        name: load_encoder(SCHEMA.modalities[SCHEMA.numbers[name]], config).eval() for name, config in configs.items()
    }
    embedder, records = Embedder(SCHEMA, encoders), columns()
    vectors, notes = embedder(records)
    objects = sum(count for name, count in notes.items() if name.startswith("embedded."))
    model = ModelConfig(dim=64, layers=2, encoders=configs)
    inside, outside = build_model(SCHEMA, model), build_model(embedder.schema, model)
    seconds = take_turns(
        {
            "step, encoders inside": engine_step(inside[1], batch_of(SCHEMA, records)),
            "step on embedded data": engine_step(outside[1], batch_of(embedder.schema, vectors)),
            "embedding": partial(embedder, records),
        },
        rounds,
    )
    step, light, embed = seconds.values()
    table((f"of {RECORDS} records", "ms", "objects/s"), [(n, 1000 * s, objects / s) for n, s in seconds.items()])
    return {
        "encoders' share of a step, inside": 1 - light / step,
        "step inside / step on embedded data": step / light,
        "embedding / what it saves of a step": embed / (step - light),
    }


def verb(folder: Path, configs: dict[str, PretrainedConfig], records: int) -> dict[str, float]:
    """Objects a second of `embed`, in one process and on two workers; the bytes must be the same."""
    pack(MadeUp(MadeUpOptions(records=records)), str(folder / "data"), chunk_records=8, shard_bytes=200_000)
    encode = [word for name, config in configs.items() for word in ("--encode", f"{name}={config.source}")]
    rates: dict[int, float] = {}
    rows = []
    for workers in (1, 2):
        words = [
            "embed",
            str(folder / "data"),
            *encode,
            "--out",
            str(folder / f"by{workers}"),
            "--workers",
            str(workers),
        ]
        done = subprocess.run([sys.executable, "-m", "launch", *words], capture_output=True, text=True, check=True)
        said = json.loads(done.stdout.splitlines()[-1])
        rates[workers] = said["objects_per_second"]
        rows.append(
            (f"workers {workers}", said["shards"], rates[workers], sum(said["objects"].values()) / said["seconds"])
        )
    table(("embed", "shards", "objects/s", "objects/s, with the start"), rows)
    same = all((folder / "by2" / path.name).read_bytes() == path.read_bytes() for path in (folder / "by1").iterdir())
    if not same:
        raise SystemExit("two workers made other bytes than one process")
    return {"two workers / one process": rates[2] / rates[1]}


def main() -> None:
    """Steps, then the verb."""
    chosen = arguments(__doc__)
    width = 64 if chosen.quick else 256
    with tempfile.TemporaryDirectory() as folder:
        configs = save_encoders(Path(folder), width)
        ratios = steps(configs, chosen.rounds or (3 if chosen.quick else 5))
        ratios |= verb(Path(folder), configs, 64 if chosen.quick else 1600)
    table(("ratio", "value"), list(ratios.items()))
    last_line("embed", ratios, width=width)


if __name__ == "__main__":
    main()
