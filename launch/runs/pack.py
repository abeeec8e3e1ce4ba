"""The verb `pack`, by processes of this machine or by the workers of a Ray cluster: the same data set, bit by bit."""

from __future__ import annotations

from collections.abc import Sequence

from launch.datasets.pack import PackSettings, pack_source
from launch.runs.crews import crew_at


def pack_data(
    name: str,
    folder: str | None,
    splits: str | None,
    options: Sequence[str],
    settings: PackSettings,
    address: str | None,
    debug: bool,
) -> None:
    """Pack a source where `address` or the job that this runs in says; prints the report as the last line.

    Raises as `pack_source`; ConnectionError: there is no Ray at the address. RunFailedError: a worker failed for good.
    """
    with crew_at(address, settings.workers, debug) as crew:
        pack_source(name, folder, splits, options, settings, crew)
