"""What a server counts, in the text form of Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

_HELP = {
    "fleximoe_requests_total": ("counter", "Requests by path and HTTP status."),
    "fleximoe_request_seconds_total": ("counter", "Time that requests took, by path."),
    "fleximoe_retries_total": ("counter", "Requests put to another copy, as the first one was gone."),
    "fleximoe_copies": ("gauge", "Copies of the model that live."),
    "fleximoe_batches_total": ("counter", "Batches that went through the models of copies that live."),
    "fleximoe_records_total": ("counter", "Records that were predicted by copies that live."),
}


class Counts:
    """Counters of the door."""

    def __init__(self) -> None:
        self._values: Counter[tuple[str, str]] = Counter()

    def add(self, name: str, value: float = 1.0, **labels: object) -> None:
        """Add to a counter; its labels are text."""
        self._values[(name, _labels(labels))] += value  # type: ignore[assignment]

    def text(self, copies: Sequence[Mapping[str, float]]) -> str:
        """All of them, and those of copies of the model, each by its number."""
        values: dict[tuple[str, str], float] = {**self._values, ("fleximoe_copies", ""): len(copies)}
        for number, own in enumerate(copies):
            values |= {(name, _labels({"copy": number})): value for name, value in own.items()}
        lines = []
        for name, (kind, about) in _HELP.items():
            lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{labels} {value:g}" for (own_name, labels), value in values.items() if own_name == name]
        return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, object]) -> str:
    said = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{{{said}}}" if said else ""
