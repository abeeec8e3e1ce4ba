"""A small all-to-all, as expert-parallel groups do it, with its rate: of all nodes over gloo, of all GPUs over NCCL."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from launch.doctor.findings import Finding

BYTES = 8 << 20  # that each sends to each other
ROUNDS = 4
PATIENCE_S = 60.0


class Exchanger:
    """One part of the exchange; an actor. With a GPU it goes over NCCL, else over gloo."""

    def door(self) -> tuple[str, int]:
        """Opens the place where all may meet: address and port. It stays open, so nobody else can take the port."""
        import ray
        import torch.distributed as dist

        address = ray.util.get_node_ip_address()
        self._store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)
        return address, self._store.port

    def exchange(self, rank: int, world: int, door: tuple[str, int]) -> float:
        """Bytes/s that this one sent to the others."""
        import torch
        import torch.distributed as dist

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        backend = "nccl" if device.type == "cuda" else "gloo"
        patience = timedelta(seconds=PATIENCE_S)
        store = dist.TCPStore(*door, is_master=False, timeout=patience)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=patience)
        try:
            out = torch.full((world, BYTES), rank, dtype=torch.uint8, device=device)
            received = torch.empty_like(out)
            for turn in range(ROUNDS + 1):
                if turn == 1:  # the first one makes the connections
                    start = time.perf_counter()
                dist.all_to_all_single(received, out)
            seconds = (time.perf_counter() - start) / ROUNDS
            right = torch.equal(received[:, 0].cpu(), torch.arange(world, dtype=torch.uint8))
            if not right:
                raise RuntimeError("what arrived is not what was sent")
            return (world - 1) * BYTES / seconds
        finally:
            dist.destroy_process_group()


def exchange_between(nodes: Sequence[str], gpus: bool) -> Finding:
    """One on each of these nodes, by Ray's id, sends to all others; `gpus`: each with a GPU of its own."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actors: list[Any] = [
        ray.remote(Exchanger)
        .options(
            num_cpus=0, num_gpus=1 if gpus else 0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        )
        .remote()
        for node in nodes
    ]
    try:
        door = ray.get(actors[0].door.remote(), timeout=PATIENCE_S)
        parts = [actor.exchange.remote(rank, len(nodes), door) for rank, actor in enumerate(actors)]
        rates = ray.get(parts, timeout=2 * PATIENCE_S)
    except Exception as error:  # of Ray or of the communication library
        todo = "ports between nodes closed? wrong interface? Set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME for Ray"
        return Finding(
            "exchange", "fail", f"{'GPUs' if gpus else 'nodes'} cannot exchange data: {_last_line(error)}", todo
        )
    finally:
        for actor in actors:
            ray.kill(actor)
    who = f"{len(nodes)} GPUs over NCCL" if gpus else f"{len(nodes)} nodes over gloo"
    text = f"all-to-all of {who}: {min(rates) / 1e6:,.0f} MB/s sent by the slowest"
    return Finding("exchange", "ok", text)


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
