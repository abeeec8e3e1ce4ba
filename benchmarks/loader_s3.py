"""How fast do packed records become batches that lie on an object store where every request takes 20 ms?

    python -m benchmarks.loader_s3 [--records 4000] [--delay-ms 20] [--chunk-records 64]

A server with S3's protocol in a process of its own answers each request for an object after the delay, and counts
them. Ours: `StepLoader`, shuffled order, batches of 64, in this process, with loader processes, and with those and a
cache on this machine's disk. webdataset: its default pipeline (`WebDataset(...).decode()`) over as many shards of one
.npy member an array, through its own default way to URLs (curl), no shuffling. Requests are counted per 1,000 records.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import last_line, table
from benchmarks.loader import KINDS, Held, npy_shard
from data_shards import StepLoader, create_source, open_manifest, pack
from data_shards.config import DataConfig

SHARDS = 8


def serve(delay_s: float, counted: Any, port: Any) -> None:
    """The server's process."""
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    answer = S3Response.key_response

    def slowly(self: Any, request: Any, *more: Any) -> Any:
        if request.method == "GET":
            with counted.get_lock():
                counted.value += 1
            time.sleep(delay_s)
        return answer(self, request, *more)

    S3Response.key_response = slowly
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    port.value = server.get_host_and_port()[1]
    time.sleep(1e9)


@contextmanager
def object_store(delay_s: float) -> Iterator[tuple[str, Any]]:
    """URL of the server, and how many objects were asked for."""
    context = multiprocessing.get_context("spawn")
    counted, port = context.Value("q", 0), context.Value("q", 0)
    process = context.Process(target=serve, args=(delay_s, counted, port), daemon=True)
    process.start()
    while not port.value:
        time.sleep(0.05)
    url = f"http://127.0.0.1:{port.value}"
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ["AWS_ENDPOINT_URL"] = url
    import boto3

    boto3.client("s3", endpoint_url=url).create_bucket(Bucket="data")
    yield url, counted
    process.kill()
    process.join()


def alternatives(url: str, records: int, chunk_records: int, scratch: Path) -> dict[str, Callable[[], int]]:
    """Ways that go through all records once; how many those were."""
    import boto3
    import webdataset

    source = create_source("synthetic", {"modalities": KINDS[8], "records": records})
    made = list(source.records())
    for record in made:
        record.splits["default"] = "train"
    each = -(-records // SHARDS)
    names, client = [], boto3.client("s3", endpoint_url=url)
    for number in range(SHARDS):
        path = scratch / f"npy-{number}.tar"
        npy_shard(path, made[number * each : (number + 1) * each])
        client.put_object(Bucket="data", Key=path.name, Body=path.read_bytes(), ACL="public-read")
        names.append(f"{url}/data/{path.name}")
    size = sum(path.stat().st_size for path in scratch.glob("npy-*.tar")) // SHARDS
    pack(Held(source.schema, made), "s3://data/packed", chunk_records=chunk_records, shard_bytes=size // 2)

    def ours(**settings: Any) -> int:
        # Opened anew: nothing is known of the data.
        manifest = open_manifest("s3://data/packed")
        loader = StepLoader(manifest, DataConfig(url=manifest.url, **settings), "train", 64)
        found = sum(step.samples for step in loader.steps(0))
        loader.close()
        return found

    def theirs() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sum(1 for _ in webdataset.WebDataset(names, shardshuffle=False).decode())

    def cached() -> int:
        with tempfile.TemporaryDirectory() as folder:
            return ours(workers=2, cache_dir=folder)

    return {
        "ours, one process": ours,
        "ours, 2 loader processes": lambda: ours(workers=2),
        "ours, 2 and a cache": cached,
        "webdataset": theirs,
    }


def main() -> None:
    """Parse, make, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=4000)
    parser.add_argument("--delay-ms", type=float, default=20.0)
    parser.add_argument("--chunk-records", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2, help="the best one counts")
    chosen = parser.parse_args()
    rates, requests = dict[str, float](), dict[str, float]()
    with object_store(chosen.delay_ms / 1000) as (url, counted), tempfile.TemporaryDirectory() as scratch:
        ways = alternatives(url, chosen.records, chosen.chunk_records, Path(scratch))
        for _ in range(chosen.rounds):
            for name, way in ways.items():
                before, start = counted.value, time.perf_counter()
                assert way() == chosen.records
                rates[name] = max(rates.get(name, 0.0), chosen.records / (time.perf_counter() - start))
                requests[name] = 1000 * (counted.value - before) / chosen.records
    rows = [(name, rate, rate / rates["webdataset"], requests[name]) for name, rate in rates.items()]
    table(("reader", "samples/s", "of webdataset", "requests/1,000"), rows)
    last_line("loader_s3", {name: ratio for name, _, ratio, _ in rows}, records=chosen.records)


if __name__ == "__main__":
    main()
