"""The parts of a plan, read from definitions: names, options and signatures. No user code is called."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flowdeco.model.annotations import EMPTY
from flowdeco.model.definitions import (
    Action,
    Parallel,
    Pipeline,
    Stage,
    Stream,
    Unit,
    as_stage,
    data_of,
    options_of,
)
from flowdeco.model.steps import Step, step_of
from flowdeco.show.parts import DEEPEST, Part

__all__ = ["planned_action", "planned_parts", "planned_stage", "stage_part"]


def planned_parts(units: Iterable[Unit | Stream], depth: int = 0) -> tuple[Part, ...]:
    """Return the parts of these units; plain pipelines are replaced by their units, as `>>` does."""
    parts: list[Part] = []
    for unit in units:
        if isinstance(unit, Pipeline) and (unit.plain or depth >= DEEPEST):
            parts.extend(planned_parts(unit.units, depth))
        else:
            parts.append(_planned(unit, depth))
    return tuple(parts)


def _planned(unit: Unit | Stream, depth: int) -> Part:
    unit = as_stage(unit)
    if isinstance(unit, Stage):
        return planned_stage(unit)
    if isinstance(unit, Pipeline):
        return Part(
            "pipeline",
            unit.name,
            unit.title if unit.title != unit.name else "",
            unit.description,
            tuple(sorted(unit.tags)),
            planned_parts(unit.units, depth + 1),
            middleware=_layer_names(unit.use, unit.use_stages, unit.use_actions),
        )
    if isinstance(unit, Parallel):
        branches = tuple(
            Part("branch", branch.name, parts=planned_parts((branch,), depth + 2), stem=_stem(branch), record=index)
            for index, branch in enumerate(unit.units)
        )
        source = "" if unit.stream is None else unit.stream.name
        tags = tuple(sorted(unit.tags))
        return Part("parallel", unit.name, tags=tags, parts=branches, limit=unit.limit, source=source)
    return Part("stage", unit.name)


def _stem(unit: Any) -> str:
    return str(getattr(getattr(unit, "template", None), "name", ""))


def planned_stage(stage: Stage) -> Part:
    """Return the part of a stage, with its actions."""
    return stage_part(stage, tuple(map(planned_action, stage)))


def stage_part(stage: Stage, actions: tuple[Part, ...]) -> Part:
    """Return the part of a stage, with these actions."""
    return Part(
        "stage",
        stage.name,
        options_of(stage)["title"] or "",
        stage.description,
        tuple(sorted(stage.tags)),
        actions,
        _stem(stage),
        middleware=_layer_names(stage.use, stage.use_actions),
        data=tuple(f"{key}: {type(value).__name__}" for key, value in data_of(stage).items()),
    )


def planned_action(action: Action[..., Any]) -> Part:
    """Return the part of an action: its keys are read from its signature and its options."""
    step = step_of(action)
    reads = tuple(
        parameter.key + "?" * (parameter.default is not EMPTY)
        for parameter in step.inputs
        if not (parameter.context or parameter.name in step.bound)
    )
    return Part(
        "action",
        action.name,
        description=action.description,
        tags=tuple(sorted(action.tags)),
        reads=reads,
        writes=() if step.names_units else step.supplies,
        inserts=_returns_units(step),
        middleware=_layer_names(step.use),
    )


def _returns_units(step: Step) -> bool:
    if step.names_units or not step.inserts:
        return step.names_units
    return step.generates or not any(step.returned is anything for anything in (EMPTY, Any, object))


def _layer_names(*several: Iterable[Any]) -> tuple[str, ...]:
    return tuple(
        str(getattr(layer, "__name__", None) or type(layer).__name__) for layers in several for layer in layers
    )
