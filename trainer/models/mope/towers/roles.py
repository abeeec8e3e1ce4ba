"""Which tower reads which modality, which one is prompted, and which one prompts are made from."""

from __future__ import annotations

from data_shards import DatasetSchema, ModalitySpec
from trainer.config.mope import MopeConfig
from trainer.models.mope.towers.tower import Tower
from trainer.models.pretrained.loading.backbone import BackboneError


def roles_of(config: MopeConfig, towers: list[str], pretraining: bool) -> tuple[list[str], list[str]]:
    """Towers that are prompted (or, without prompts, read by the head), and towers that prompts are made from."""
    if pretraining:
        if len(towers) != 1:
            raise BackboneError(f"job=tower trains one tower alone: give mope.image or mope.text, not {len(towers)}")
        return towers, []
    hosts: list[str] = ["image", "text"] if config.prompted == "both" else [config.prompted]
    missing = [host for host in hosts if host not in towers]
    if missing:
        raise BackboneError(f"mope.prompted={config.prompted}, but there is no section mope.{missing[0]}")
    if config.method == "late_fusion" and len(towers) < 2:
        other = "text" if towers == ["image"] else "image"
        raise BackboneError(f"mope.method=late_fusion reads two towers, and there is no section mope.{other}")
    sources = [what for what in towers if what not in hosts or config.prompted == "both"]
    if (config.mapped or config.dynamic) and not sources:
        other = "text" if config.prompted == "image" else "image"
        raise BackboneError(
            f"mope.method={config.method} makes prompts from another tower, and there is no section mope.{other}"
        )
    return hosts, sources if config.mapped or config.dynamic else []


def modality_of(schema: DatasetSchema, what: str, name: str | None, masks: str | None = None) -> ModalitySpec:
    """The modality that a tower reads; `masks` is one that none reads. A tower reads one of it a record, so none with
    times.

    Raises BackboneError unless exactly one is of the tower's kind, or has this name.
    """
    fitting = [spec for spec in schema.modalities if spec.kind == what and not spec.timed and spec.name != masks]
    if name is not None:
        fitting = [spec for spec in fitting if spec.name == name]
    if len(fitting) != 1:
        known = ", ".join(f"{spec.name} ({'timed ' * spec.timed}{spec.kind})" for spec in schema.modalities)
        problem = "has no" if not fitting else "has more than one"
        asked = f" called {name}" if name is not None else ""
        raise BackboneError(
            f"tower {what}: data set {schema.name} {problem} modality of kind {what}{asked}; it has {known}; say which "
            f"one in mope.{what}.modality"
        )
    return fitting[0]


def check_shape(tower: Tower, spec: ModalitySpec) -> None:
    """Raise BackboneError if the pictures of a modality have another shape than the tower takes."""
    if tower.what == "image" and tuple(spec.shape) != tower.picture_shape:
        raise BackboneError(
            f"tower image takes pictures of {tower.picture_shape} (channels, height, width), and modality {spec.name} "
            f"has {tuple(spec.shape)}: pack the data at that size, or use a tower of this one"
        )
