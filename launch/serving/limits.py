"""Bounds on what a server takes, and how it says that something is not answered."""

from __future__ import annotations

from dataclasses import dataclass

from launch.serving.prefix import Prefix


@dataclass(frozen=True)
class Limits:
    """Bounds on one request.

    Attributes:
        bytes: of its body, and of all that its URLs lead to. records: in it.
        pixels: of all pictures in it that are files, before they are fitted. samples: of all sound files, all channels.
        prefixes: of URLs that are fetched. urls: in a request. seconds: that they may take together.
    """

    bytes: int = 16 << 20
    records: int = 1_000
    pixels: int = 50_000_000
    samples: int = 50_000_000
    prefixes: tuple[Prefix, ...] = ()
    urls: int = 32
    seconds: float = 10.0


class RefusedError(ValueError):
    """A request that is not answered; `status` of HTTP, and a sentence for whoever sent it."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
