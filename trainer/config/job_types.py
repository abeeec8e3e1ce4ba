"""Which types of job there are, and where each is: one line a type, in the only place that spells their names.

A type is a subclass of `trainer.models.job_type.JobType`, found by the text `module:class` and imported when a run of
it is read. An installed package adds types of its own through the entry-point group `fleximoe.job_types`; every process
of a run finds them there, so nothing is registered by hand.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

FUSEMOE, MOPE, TOWER = "fusemoe", "mope", "tower"
EVALUATE = "evaluate"  # what is done with a model of any type; no type itself
JOB_TYPES = {
    FUSEMOE: "trainer.models.fusemoe.job_type:FuseMoEJob",
    MOPE: "trainer.models.mope.job_type:MopeJob",
    TOWER: "trainer.models.mope.job_type:TowerJob",
}
ENTRY_POINTS = "fleximoe.job_types"


def known_job_types() -> list[str]:
    """Names of our own types, then of installed ones."""
    return [*JOB_TYPES, *sorted({point.name for point in entry_points(group=ENTRY_POINTS)} - set(JOB_TYPES))]


@cache
def find_job_type(name: str) -> Any:
    """The type of this name, as `trainer.models.job_type.job_type` gives it with its type.

    Raises ValueError: there is none, or an installed one has another name than its entry point.
    """
    if name in JOB_TYPES:
        module, _, attribute = JOB_TYPES[name].partition(":")
        return getattr(import_module(module), attribute)()
    for point in entry_points(group=ENTRY_POINTS, name=name):
        found = point.load()()
        if found.name != name:
            raise ValueError(f"job type {name!r} of {point.value} calls itself {found.name!r}: one name is needed")
        return found
    raise ValueError(f"job={name!r} is no type of job; there are {', '.join([*known_job_types(), EVALUATE])}")
