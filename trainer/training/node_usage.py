"""What each node is busy with: CPU, memory, disk, network and GPU, logged beside the metrics of the run.

Every rank calls `read` when a log line is due; the first rank of a node speaks for it. The names follow MLflow's own
(`system/...`), so its page shows them under system metrics, and no process of its own is needed on any node.
"""

from __future__ import annotations

import importlib.util
import time

import psutil
import torch
from torch import Tensor

from trainer.worker.collectives import sum_over_ranks

HOST = (
    "cpu_utilization_percentage",
    "system_memory_usage_gib",
    "network_received_mib_s",
    "network_sent_mib_s",
    "disk_read_mib_s",
)
GPU = ("gpu_utilization_percentage", "gpu_memory_gib")
MIB, GIB = 2**20, 2**30


class NodeUsage:
    """Usage of all nodes since the last reading. Collective: made and read by every rank.

    Args:
        local_rank: 0 for the rank that speaks for its node; ranks of one node follow each other.
    """

    def __init__(self, rank: int, world: int, local_rank: int, device: torch.device) -> None:
        self._first, self._device = local_rank == 0, device
        leads_R = torch.zeros(world)
        leads_R[rank] = float(self._first)
        number_R = sum_over_ranks(leads_R).cumsum(0).long() - 1
        self._node, self._nodes = int(number_R[rank].clamp_min(0)), max(1, int(number_R[-1]) + 1)
        gpus = device.type == "cuda" and importlib.util.find_spec("pynvml") is not None
        self._names = HOST + (GPU if gpus else ())
        psutil.cpu_percent()  # the first call only starts the clock
        self._before = self._counters()

    def _counters(self) -> tuple[float, float, float, float]:
        """Time in s; bytes received, sent and read from disk since the host started."""
        network, disk = psutil.net_io_counters(), psutil.disk_io_counters()
        return time.monotonic(), network.bytes_recv, network.bytes_sent, disk.read_bytes if disk else 0

    def read(self) -> dict[str, float]:
        """`system/nodeN/NAME` of every node, on every rank. GPU figures are means over the node's ranks."""
        own = torch.zeros(self._nodes, len(self._names) + 1, dtype=torch.float64)
        own[self._node, -1] = 1  # ranks of the node
        if self._first:
            own[self._node, : len(HOST)] = torch.tensor(self._host(), dtype=torch.float64)
        if len(self._names) > len(HOST):
            used = torch.cuda.device_memory_used(self._device) / GIB
            own[self._node, len(HOST) : -1] = torch.tensor([float(torch.cuda.utilization(self._device)), used])
        return self._named(sum_over_ranks(own))

    def _host(self) -> list[float]:
        now = self._counters()
        seconds = max(1e-3, now[0] - self._before[0])
        rates = [(new - old) / MIB / seconds for new, old in zip(now[1:], self._before[1:], strict=True)]
        self._before = now
        return [psutil.cpu_percent(), psutil.virtual_memory().used / GIB, *rates]

    def _named(self, values: Tensor) -> dict[str, float]:
        named = {}
        for node, (*row, ranks) in enumerate(values.tolist()):
            for place, (name, value) in enumerate(zip(self._names, row, strict=True)):
                named[f"system/node{node}/{name}"] = value / (1 if place < len(HOST) else max(1.0, ranks))
        return named
