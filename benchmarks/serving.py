"""The server under load, and under rubbish: `python -m benchmarks.serving EXPORT RECORDS.json` (see `--help`).

Requests a second and the times of requests, by 1, 8 and 64 clients of one connection each, one record a request,
against a plain loop in one process over `PortableModel` and, for a few records, over `Run.predict`. The clients are
another process on the same cores. Then a copy of the model is killed while eight clients ask, and requests
that are damaged in random ways are sent; the memory of the processes that answer is read before and after.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.served import Client, free_port, processes, serving

CLIENTS = (1, 8, 64)
PATH = "/predict"


class Shot:
    """What a number of clients got: status and seconds of each request, and what was said with other statuses."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.status: Counter[int] = Counter()
        self.said: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    def line(self, wall: float) -> dict[str, float]:
        """Figures of it."""
        part = np.array(self.seconds) * 1000
        return {
            "requests": len(part),
            "per_second": round(len(part) / wall, 1),
            "p50_ms": round(float(np.percentile(part, 50)), 1),
            "p99_ms": round(float(np.percentile(part, 99)), 1),
            "other": sum(self.status.values()) - self.status[200] + sum(self.failed.values()),
        }


def shoot(client: Client, bodies: list[bytes], clients: int, seconds: float) -> tuple[Shot, float]:
    """Ask with so many clients at a time, for so long."""
    shot, lock, end = Shot(), threading.Lock(), time.perf_counter() + seconds

    def go(number: int) -> None:
        own, mine = client.again(), Shot()
        while time.perf_counter() < end:
            one(own, bodies[number % len(bodies)], mine)
            number += clients
        with lock:
            merge(shot, mine)

    started = time.perf_counter()
    threads = [threading.Thread(target=go, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return shot, time.perf_counter() - started


def one(client: Client, body: bytes, shot: Shot, token: str | None = None) -> None:
    """One request."""
    started = time.perf_counter()
    try:
        status, said = client.raw(PATH, body, token)
    except OSError as error:
        shot.failed[type(error).__name__] += 1
        return
    shot.seconds.append(time.perf_counter() - started)
    shot.status[status] += 1
    if status != 200:
        shot.said[json.loads(said)["error"]] += 1


def merge(into: Shot, own: Shot) -> None:
    """Add one client's to all."""
    into.seconds += own.seconds
    for name in ("status", "said", "failed"):
        getattr(into, name).update(getattr(own, name))


def apart(function: Any, *arguments: Any) -> Any:
    """In a process of its own, so that clients take no time of whoever measures."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def plain_loop(export: str, records: list[dict[str, Any]], seconds: float) -> dict[str, float]:
    """One record after the other in this process, by the exported model."""
    import torch

    from trainer.inference.portable.model import PortableModel

    torch.set_num_threads(1)
    model, shot = PortableModel(export), Shot()
    model.predict(model.records(records[:1]))
    started = time.perf_counter()
    while time.perf_counter() < started + seconds:
        before = time.perf_counter()
        model.predict(model.records([records[len(shot.seconds) % len(records)]]))
        shot.seconds.append(time.perf_counter() - before)
    return shot.line(time.perf_counter() - started)


def run_loop(run: str, export: str, plain: list[dict[str, Any]]) -> dict[str, float]:
    """One record after the other by `Run.predict`, which packs each and opens the checkpoint."""
    import fleximoe

    opened, shot = fleximoe.open_run(run), Shot()
    records = fleximoe.load(export).records(plain)
    started = time.perf_counter()
    for record in records:
        before = time.perf_counter()
        opened.predict([record])
        shot.seconds.append(time.perf_counter() - before)
    return shot.line(time.perf_counter() - started)


def damaged(body: bytes, draw: random.Random) -> bytes:
    """A request that is no more what it was."""
    way = draw.randrange(9)
    if way == 0:
        return body[: draw.randrange(len(body))]
    if way == 1:
        data = bytearray(body)
        for _ in range(draw.randrange(1, 20)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        return bytes(data)
    if way == 2:
        return draw.randbytes(draw.randrange(2000))
    if way == 3:
        return b"[" * draw.randrange(1, 200_000)
    record = json.loads(body)
    names = [name for name in record if name != "key"] or ["x"]
    name = draw.choice(names)
    odd = [7, -1e308, "text", True, [], {}, [[[]]], {"times": [1]}, ["a"], "A" * 5000, [None] * 999, {"": None}, "\x00"]
    if way == 4:
        record[name] = draw.choice(odd)
    elif way == 5:
        record[f"{name}{draw.randrange(99)}"] = draw.choice(odd)
    elif way == 6 and isinstance(record.get(name), dict) and record[name]:
        record[name][draw.choice(list(record[name]))] = draw.choice(odd)
    elif way == 7:
        return json.dumps({"records": [draw.choice(odd)] * draw.randrange(3)}).encode()
    else:
        return json.dumps([{}] * draw.randrange(1001, 1100)).encode()
    return json.dumps(record).encode()


def rubbish(client: Client, bodies: list[bytes], count: int, seed: int) -> Shot:
    """So many damaged requests by eight clients, as many as are refused by chance of being whole apart."""
    shot, lock = Shot(), threading.Lock()

    def go(number: int) -> None:
        draw, own, mine = random.Random(seed + number), client.again(), Shot()
        for _ in range(count // 8):
            one(own, damaged(draw.choice(bodies), draw), mine)
        with lock:
            merge(shot, mine)

    threads = [threading.Thread(target=go, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return shot


def working(client: Client) -> dict[str, list[psutil.Process]]:
    """The processes that answer, by what they are."""
    words = {"copies": ":Replica", "door": ":Door", "proxy": "ProxyActor"}
    return {name: [psutil.Process(pid) for pid in processes(client.process or 0, word)] for name, word in words.items()}


def memory(client: Client) -> dict[str, int]:
    """MiB of the processes that answer, resident."""
    return {name: sum(own.memory_info().rss for own in found) >> 20 for name, found in working(client).items()}


def cpu(client: Client) -> dict[str, float]:
    """Seconds that the processes that answer have worked."""
    return {name: sum(sum(own.cpu_times()[:2]) for own in found) for name, found in working(client).items()}


def counter(client: Client, name: str) -> float:
    """A figure of /metrics; 0 where it has never been counted."""
    lines = client.ask("/metrics")[1].splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def under_load(export: str, bodies: list[bytes], seconds: float) -> list[dict[str, Any]]:
    """One copy; requests by 1, 8 and 64 clients."""
    rows = []
    with serving(export, free_port(), "--replicas", "1") as client:
        apart(shoot, client.again(), bodies, 8, 3.0)  # warm
        for clients in CLIENTS:
            before = cpu(client)
            shot, wall = apart(shoot, client.again(), bodies, clients, seconds)
            took = {
                f"{name}_cpu_ms": round(1000 * (value - before[name]) / len(shot.seconds), 2)
                for name, value in cpu(client).items()
            }
            rows.append({"clients": clients, **shot.line(wall), **took})
            print(rows[-1], dict(shot.said), dict(shot.failed), flush=True)
    return rows


def killed(export: str, bodies: list[bytes], seconds: float) -> dict[str, Any]:
    """Two copies, eight clients; one copy is killed after a third of the time."""
    with serving(export, free_port(), "--replicas", "2") as client:
        apart(shoot, client.again(), bodies, 8, 3.0)
        first = processes(client.process or 0, ":Replica")[0]
        timer = threading.Timer(seconds / 3, os.kill, (first, signal.SIGKILL))
        timer.start()
        shot, wall = apart(shoot, client.again(), bodies, 8, seconds)
        assert not psutil.pid_exists(first)
        found = {**shot.line(wall), "longest_ms": round(1000 * max(shot.seconds)), "said": dict(shot.said)}
        found["put_to_another"] = counter(client, "fleximoe_retries_total")
        print("killed", found, dict(shot.failed), flush=True)
        return found


def malformed(export: str, bodies: list[bytes], count: int) -> dict[str, Any]:
    """Damaged requests, and what they leave."""
    with serving(export, free_port(), "--replicas", "1") as client:
        apart(rubbish, client.again(), bodies, count // 5, 10_000)  # what grows once has grown
        before = memory(client)
        shot = apart(rubbish, client.again(), bodies, count, 0)
        after = memory(client)
        lines = sum(says.count("\n") for says in shot.said)
        found = {"status": dict(shot.status), "sentences": len(shot.said), "of_several_lines": lines}
        found |= {"failed": dict(shot.failed), "mib_before": before, "mib_after": after}
        found["answers_after"] = client.raw(PATH, bodies[0])[0]
        print("malformed", found, flush=True)
        for says, times in shot.said.most_common(12):
            print(f"  {times:5} x {says[:150]}", flush=True)
        return found


def main() -> None:
    """Measure, print, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", help="folder of an exported model")
    parser.add_argument("records", type=Path, help="JSON lines of plain records")
    parser.add_argument("--run", help="a run, to compare with Run.predict")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each number of clients")
    parser.add_argument("--malformed", type=int, default=10_000)
    parser.add_argument("--only", choices=["load", "killed", "malformed"], help="one part")
    chosen = parser.parse_args()
    bodies = [line.encode() for line in chosen.records.read_text().splitlines()]
    records = [json.loads(body) for body in bodies]
    result: dict[str, Any] = {"benchmark": "serving"}
    if chosen.only in (None, "load"):
        result["loop"] = apart(plain_loop, chosen.export, records, chosen.seconds)
        print("loop over the exported model", result["loop"], flush=True)
        if chosen.run:
            result["run_predict"] = apart(run_loop, chosen.run, chosen.export, records[:5])
            print("loop over Run.predict", result["run_predict"], flush=True)
        result["served"] = under_load(chosen.export, bodies, chosen.seconds)
    if chosen.only in (None, "killed"):
        result["killed"] = killed(chosen.export, bodies, 2 * chosen.seconds)
    if chosen.only in (None, "malformed"):
        result["malformed"] = malformed(chosen.export, bodies, chosen.malformed)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
