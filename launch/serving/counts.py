"""What a replica counts, in the text form of Prometheus."""

from __future__ import annotations

from collections import Counter

_HELP = {
    "fleximoe_requests_total": ("counter", "Requests by path and HTTP status."),
    "fleximoe_request_seconds_total": ("counter", "Time that requests took, by path."),
    "fleximoe_batches_total": ("counter", "Batches that went through the model."),
    "fleximoe_records_total": ("counter", "Records that were predicted."),
}


class Counts:
    """Counters of one replica."""

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self._values: Counter[tuple[str, str]] = Counter()

    def add(self, name: str, value: float = 1.0, **labels: object) -> None:
        """Add to a counter; its labels are text."""
        said = ",".join(f'{key}="{own}"' for key, own in {"replica": self._replica, **labels}.items())
        self._values[(name, said)] += value  # type: ignore[assignment]

    def text(self) -> str:
        """All of them."""
        lines = []
        for name, (kind, about) in _HELP.items():
            lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{{{labels}}} {value:g}" for (own, labels), value in self._values.items() if own == name]
        return "\n".join(lines) + "\n"
