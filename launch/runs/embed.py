"""The verb `embed`: pretrained encoders over a packed data set, once for all runs.

One process, or several over Ray, CPU or GPU. Workers make whole shards, the same ones however many they are. Whoever is
stopped leaves complete shards, and the same command goes on behind those (`data_shards.packing.remake`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from data_shards import open_manifest
from data_shards.packing.remake import remake
from data_shards.paths import absolute_path, absolute_url
from data_shards.shards.lineage import Lineage
from data_shards.shards.storage import Storage
from launch.cluster.environment import prepare_for_ray
from launch.errors import RunFailedError, UsageError
from launch.output.tables import print_json_line, print_table
from trainer.config.encoders import PretrainedConfig
from trainer.config.run_config import RunConfig

if TYPE_CHECKING:
    from data_shards import Manifest
    from data_shards.packing.shard_maker import Remade, ShardMaker, Task
    from trainer.models.pretrained.encoder import PretrainedEncoder

logger = logging.getLogger(__name__)

SETTINGS = ("tokens", "dtype", "max_tokens", "max_seconds")
TELL_S = 10.0
FAILURES = 3
"""How often each worker, and each shard, is begun again when a worker dies."""


@dataclass(frozen=True)
class Work:
    """What a worker must know. Plain values: it travels to other processes."""

    url: str
    digest: str
    out: str
    encoders: dict[str, PretrainedConfig]


def embed_data(
    url: str,
    encode: Sequence[str],
    options: Sequence[str],
    out: str,
    workers: int,
    address: str | None,
    overwrite: bool,
    lease_s: float,
    debug: bool,
) -> None:
    """Embed, write `out`, print what was done as the last line.

    Raises:
        UsageError: what was asked for makes no sense. RunFailedError: a worker failed for good.
        BackboneError: an encoder cannot be had, or does not fit. Others as `remake`.
    """
    from trainer.inference.embedder import embedded_from, embedded_schema

    started = time.monotonic()
    manifest = open_manifest(absolute_url(url))
    configs = asked_for(encode, options)
    encoders = load_encoders(manifest, configs)
    schema = embedded_schema(manifest.schema, encoders)
    said, job = embedded_from(manifest.schema, manifest.digest, encoders)
    work = Work(manifest.url, manifest.digest, absolute_url(out), configs)
    logger.info("embedding %s of %s into %s", ", ".join(configs), manifest.url, work.out)

    def run(tasks: Sequence[Task]) -> Iterator[Remade]:
        if workers > 1:
            return _on_ray(work, tasks, workers, address, debug)
        return map(_here(work, manifest, encoders), tasks)

    progress = Progress(manifest.records)
    lineage = Lineage(embedded={**manifest.embedded, **said})
    new, made = remake(
        manifest, work.out, schema, lineage, job, run, "embedding",
        told=progress.hear, overwrite=overwrite, lease_s=lease_s,
    )  # fmt: skip
    objects = {name: made.notes[f"embedded.{name}"] for name in configs}
    cut = {name: made.notes[f"embedded_cut.{name}"] for name in configs}
    rows: list[tuple[str, object]] = [
        (f"objects of {name}, of which the end of {cut[name]:,} was not read", objects[name]) for name in configs
    ]
    rows += [("shards", len(new.shards)), ("complete before", len(new.shards) - made.fresh)]
    rows += [("complete before, damaged, made again", made.again)] * (made.again > 0)
    print_table(f"embedded {new.url}", ("what", "how much"), rows)
    print_json_line(
        {
            "url": new.url,
            "digest": new.digest,
            "of": manifest.digest,
            "records": new.records,
            "shards": len(new.shards),
            "made": made.fresh,
            "made_again": made.again,
            "objects": objects,
            "cut": cut,
            "encoders": {name: encoder.describe() for name, encoder in encoders.items()},
            "workers": workers,
            "objects_per_second": progress.rate,
            "seconds": round(time.monotonic() - started, 2),
        }
    )


def asked_for(encode: Sequence[str], options: Sequence[str]) -> dict[str, PretrainedConfig]:
    """Modality -> encoder, from ``NAME=SOURCE`` and ``NAME.KEY=VALUE``. Raises UsageError."""
    found: dict[str, dict[str, Any]] = {name: {"source": source} for name, source in sources_of(encode).items()}
    for text in options:
        path, equals, value = text.partition("=")
        name, dot, key = path.rpartition(".")
        if not equals or not dot or name not in found or key not in SETTINGS:
            raise UsageError(
                f"-o {text!r}: write MODALITY.KEY=VALUE, for a modality that is embedded "
                f"({', '.join(found)}) and one of {', '.join(SETTINGS)}"
            )
        found[name][key] = value
    try:
        return {name: PretrainedConfig.model_validate(own) for name, own in found.items()}
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"-o {'.'.join(map(str, first['loc'][:1]))}: {first['msg']}") from error


def sources_of(encode: Sequence[str]) -> dict[str, str]:
    """Modality -> source, from ``NAME=SOURCE``. Raises UsageError."""
    found: dict[str, str] = {}
    for text in encode:
        name, equals, source = text.partition("=")
        if not equals or not name or not source:
            raise UsageError(f"--encode {text!r}: write MODALITY=FOLDER, or MODALITY=NAME of the Hugging Face hub")
        if name in found:
            raise UsageError(f"--encode {name} is given twice")
        found[name] = _place(source)
    return found


def _place(source: str) -> str:
    """A folder as an absolute path, anything else as it is."""
    path = absolute_path(source) if "://" not in source else None
    return str(path) if path is not None and path.is_dir() else source


def load_encoders(manifest: Manifest, configs: dict[str, PretrainedConfig]) -> dict[str, PretrainedEncoder]:
    """Modality -> its encoder, on the CPU. Raises UsageError: no such modality. BackboneError: it cannot be had."""
    from trainer.models.pretrained.load import load_encoder

    schema, found = manifest.schema, {}
    for name, config in configs.items():
        if name not in schema.numbers:
            raise UsageError(f"{manifest.url} has no modality {name!r}; it has {', '.join(schema.modality_names)}")
        spec = schema.modalities[schema.numbers[name]]
        if spec.encoder:
            raise UsageError(f"modality {name} of {manifest.url} is embedded already, by encoder {spec.encoder[:12]}")
        found[name] = load_encoder(spec, config).eval()
    return found


def _here(work: Work, manifest: Manifest, encoders: dict[str, PretrainedEncoder]) -> ShardMaker:
    """What makes shards in this process."""
    import torch

    from data_shards.packing.shard_maker import ShardMaker
    from trainer.inference.embedder import Embedder
    from trainer.worker.context import default_device

    # How a sum is split among threads decides its last bits, and all workers are to find the same ones.
    torch.set_num_threads(1)
    device = default_device(0)
    own = {name: encoder.to(device) for name, encoder in encoders.items()}
    embedder = Embedder(manifest.schema, own, device)
    return ShardMaker(manifest, embedder.schema, Storage(work.out), embedder)


class EmbedWorker:
    """A Ray actor that makes shards."""

    def __init__(self, work: Work) -> None:
        manifest = open_manifest(work.url)
        if manifest.digest != work.digest:
            raise ValueError(f"{work.url} is another data set by now ({manifest.digest[:12]}, not {work.digest[:12]})")
        self._make = _here(work, manifest, load_encoders(manifest, work.encoders))

    def make(self, task: Task) -> Remade:
        """One shard."""
        return self._make(task)


def _on_ray(work: Work, tasks: Sequence[Task], workers: int, address: str | None, debug: bool) -> Iterator[Remade]:
    """Shards as they are complete. A worker that dies is started again, and its shard with it."""
    cluster: dict[str, Any] = {"cpus_per_worker": 1.0} | ({"address": address} if address else {})
    tree = {
        "name": "embed",
        "data": {"url": work.url},
        "parallel": {"workers": workers, "expert_parallel": 1},
        "cluster": cluster,
    }
    config = RunConfig.of(tree)
    prepare_for_ray(config)
    import ray
    from ray.util import ActorPool

    from launch.cluster.ray_session import gpus_wanted, ray_session

    # Shards are yielded inside: this Ray lives until the last one is taken.
    with ray_session(config, debug):
        worker = ray.remote(EmbedWorker).options(
            num_cpus=1, num_gpus=1 if gpus_wanted(config) else 0, max_restarts=FAILURES, max_task_retries=FAILURES
        )
        pool = ActorPool([worker.remote(work) for _ in range(min(workers, len(tasks)))])
        try:
            yield from pool.map_unordered(lambda actor, task: actor.make.remote(task), list(tasks))
        except ray.exceptions.RayTaskError as error:
            raise RunFailedError(f"{type(error.cause).__name__}: {error.cause}") from error
        except ray.exceptions.RayError as error:
            raise RunFailedError(str(error).strip().split("\n")[0]) from error


class Progress:
    """Says now and then how far it is.

    Attributes:
        rate: objects a second since the first shard was made now, without its own: what comes before is the start of
            workers, which load their encoders. None before the second.
    """

    def __init__(self, records: int) -> None:
        self.records = records
        self.rate: float | None = None
        self._done = self._made = self._objects = 0
        self._since: float | None = None
        self._said = time.monotonic()

    def hear(self, remade: Remade) -> None:
        """Of each shard."""
        now = time.monotonic()
        self._done += remade.sealed.records
        if remade.fresh and self._since is None:
            self._since = now
        elif remade.fresh and self._since is not None:
            self._made += remade.sealed.records
            self._objects += sum(count for name, count in remade.notes.items() if name.startswith("embedded."))
            self.rate = self._objects / max(now - self._since, 1e-9)
        if self._done == self.records or now - self._said > TELL_S:
            self._said = now
            logger.info("%s", self._words(now))

    def _words(self, now: float) -> str:
        words = f"{self._done:,} of {self.records:,} records"
        if self._since is None:
            return f"{words}, complete before"
        if not self._made or self.rate is None:
            return words
        left = (now - self._since) * (self.records - self._done) / self._made
        return f"{words}, {self.rate:,.0f} objects a second, about {left:,.0f} s left"
