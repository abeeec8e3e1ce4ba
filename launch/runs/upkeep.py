"""The verbs `verify`, `copy` and `drop-version`: a packed data set looked after."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from data_shards import Manifest, open_manifest
from data_shards.inspection.verify import VERIFY, Damage, Finding, Verifier, damaged_tables, verify
from data_shards.packing.upkeep.copy import copy
from data_shards.packing.upkeep.drop import drop_version
from data_shards.paths import absolute_path, absolute_url
from launch.output.tables import print_json_line, print_table
from launch.runs.crews import crew_at

logger = logging.getLogger(__name__)


def verify_data(url: str, deep: bool, log: str | None, workers: int, address: str | None, debug: bool) -> bool:
    """Whether a data set is what its manifest says; prints what is damaged, and a JSON object as the last line.

    Args:
        log: file to note every shard in; what it holds of this data set is not looked at again.
    """
    manifest = open_manifest(absolute_url(url))
    path = None if log is None else absolute_path(log)
    before = _noted(path, manifest, deep) if path is not None else {}
    verifier = Verifier(absolute_url(url), manifest.digest, deep)
    with crew_at(address, workers, debug) as crew, crew.team({VERIFY: verifier}) as team:
        if path is None:
            found = verify(manifest, team, before)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as stream:
                found = verify(manifest, team, before, lambda finding: _note(stream, manifest, deep, finding))
    damages = [*damaged_tables(manifest), *(damage for finding in found for damage in finding.damages)]
    _say(manifest, damages)
    print_json_line(
        {
            "url": manifest.url,
            "digest": manifest.digest,
            "deep": deep,
            "shards": len(found),
            "looked_at_before": len(before),
            "bytes": sum(finding.bytes for finding in found),
            "damages": len(damages),
            "records_lost": sum(damage.records for damage in damages),
        }
    )
    return not damages


def _say(manifest: Manifest, damages: Iterable[Damage]) -> None:
    rows = [(own.file, "" if own.chunk is None else own.chunk, own.what, own.records, _keys(own)) for own in damages]
    if rows:
        print_table(f"damaged in {manifest.url}", ("file", "chunk", "what", "records lost", "keys"), rows)
    else:
        print_table(
            f"nothing is damaged in {manifest.url}", ("shards", "records"), [(len(manifest.shards), manifest.records)]
        )


def _keys(damage: Damage) -> str:
    more = damage.records - len(damage.keys)
    return " ".join(damage.keys) + (f" and {more:,} more" if damage.keys and more > 0 else "")


def _note(stream: TextIO, manifest: Manifest, deep: bool, finding: Finding) -> None:
    stream.write(json.dumps({"digest": manifest.digest, "deep": deep, **finding.as_table()}) + "\n")
    stream.flush()


def _noted(path: Path, manifest: Manifest, deep: bool) -> dict[int, Finding]:
    """Shards that a log holds whole: of this data set, looked at in this way."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            table = json.loads(line)
            if (table["digest"], table["deep"]) == (manifest.digest, deep):
                finding = Finding.of_table(table)
                found[finding.shard] = finding
        except (ValueError, KeyError, TypeError):
            logger.warning("%s holds a line that is none of its own; it counts for nothing", path)
    return found


def copy_data(
    url: str, out: str, versions: bool, workers: int, address: str | None, overwrite: bool, lease_s: float, debug: bool
) -> None:
    """Copy a data set; prints a JSON object as the last line."""
    with crew_at(address, workers, debug) as crew:
        report = copy(
            absolute_url(url), absolute_url(out), crew, versions=versions, overwrite=overwrite, lease_s=lease_s
        )
    if report["version"] > 1 and not versions:
        logger.info("this is version %d; earlier ones are not copied with it (--versions)", report["version"])
    print_table(f"copied to {report['url']}", ("what", "how much"), [(key, report[key]) for key in _SHOWN])
    print_json_line(report)


_SHOWN = ("versions", "records", "files", "bytes", "copied")


def drop_data_version(url: str, version: str, lease_s: float) -> None:
    """Forget an earlier version; prints a JSON object as the last line."""
    place = absolute_url(url)
    names = drop_version(place, version, lease_s=lease_s)
    print_table(f"removed from {place}", ("file",), [(name,) for name in names])
    print_json_line({"url": place, "version": version, "removed": names})
