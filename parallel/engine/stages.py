"""In which parts a model's backward pass is finished: what is reduced together, while the rest still computes.

A model may say so by a method `stages()`: lists of its modules in the order of the forward pass. When the gradients of
a stage's inputs are there, so are those of its parameters, and of all stages behind it. Parameters that are in no
stage, or also used outside of theirs, are the rest, which is complete when the pass is. A model without the method is
one such rest. Rows of tables that are spread have a way of their own (`parallel.tables`) and are in none.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from parallel.tables.table import spread_tables


@dataclass(frozen=True)
class Stage:
    """Parameters whose gradients travel together, by name, and the modules whose inputs tell when they are complete."""

    modules: list[nn.Module]
    parameters: list[tuple[str, nn.Parameter]]


def stages_of(model: nn.Module) -> list[Stage]:
    """The trainable parameters of a model, each in one stage: first the rest, then the stages it tells of, in order.

    A parameter that several stages share is in the first of them, where its gradient is complete at last.
    """
    told: list[list[nn.Module]] = model.stages() if hasattr(model, "stages") else []  # type: ignore[operator]
    inside = {id(module) for modules in told for top in modules for module in top.modules()}
    taken = {
        id(parameter)
        for module in model.modules()
        if id(module) not in inside
        for parameter in module.parameters(recurse=False)
    }
    by_rows = {id(table.weight) for table in spread_tables(model).values()}
    names = {
        id(parameter): name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in by_rows
    }
    stages = []
    for modules in told:
        own = {id(p): p for module in modules for p in module.parameters() if id(p) in names and id(p) not in taken}
        taken |= own.keys()
        stages.append(Stage(list(modules), [(names[key], parameter) for key, parameter in own.items()]))
    staged = {id(parameter) for stage in stages for _, parameter in stage.parameters}
    rest = [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if id(parameter) in names and id(parameter) not in staged
    ]
    return [Stage([], rest), *stages]
