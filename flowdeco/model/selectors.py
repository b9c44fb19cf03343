"""Selectors that select nothing: `skip` is checked before a run, where nothing can be inserted that it might mean."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

from flowdeco.errors import DefinitionError, selector_suggestion
from flowdeco.model.definitions import Action, Parallel, Pipeline, Stage, as_stage, stages_in
from flowdeco.model.functions import attribute_uses, function_run
from flowdeco.model.options import Middleware
from flowdeco.model.steps import Step, steps_of
from flowdeco.model.units import every_unit, selectors_in

__all__ = ["check_skip", "may_insert", "switched_off"]

_INSERTING: Final = frozenset({"insert", "inserted", "outcome", "given"})  # attributes by which units are inserted


def switched_off(known: Collection[str], switches: Iterable[tuple[str, bool]]) -> bool:
    """Whether the last of these switches that names a unit with these selectors disables it."""
    latest = [on for selector, on in switches if selector in known]
    return bool(latest) and not latest[-1]


def check_skip(flow: Pipeline, skip: Iterable[str], use: Iterable[Middleware]) -> None:
    """Raise `DefinitionError` for a selector that can match nothing: nothing does, and nothing can be inserted."""
    __tracebackhide__ = True
    known = selectors_in(flow.units)
    wrong = sorted(set(skip) - known)
    if not wrong:
        return
    has_actions = any(stage.actions for stage in stages_in((flow,)))
    # Where no action runs, the warning at the end of the run will do.
    if has_actions and not (any(map(_layer_inserts, use)) or may_insert(every_unit((flow,)))):
        raise DefinitionError(
            f"skip={wrong} matches nothing in pipeline {flow.name!r}, and nothing can be inserted there. "
            f"{selector_suggestion(wrong, known)}"
        )


def may_insert(units: Iterable[Any]) -> bool:
    """Whether one of these units may insert others; those in it are not looked at."""
    return any(map(_inserts, units))


def _inserts(unit: Any) -> bool:
    """Whether a unit itself, apart from those in it, may insert others."""
    if isinstance(unit, Pipeline):
        return any(map(_layer_inserts, (*unit.use, *unit.use_stages, *unit.use_actions)))
    if isinstance(unit, (Action, Stage)):
        stage = as_stage(unit)
        layers = (*stage.use, *stage.use_actions)
        return any(map(_layer_inserts, layers)) or any(_step_inserts(step) for step, _ in steps_of(stage))
    return isinstance(unit, Parallel) and unit.stream is not None


def _step_inserts(step: Step) -> bool:
    contexts = [wanted.name for wanted in step.inputs if wanted.context and wanted.name not in step.bound]
    return (
        step.inserts
        or any(_passes_or_uses(step.function, name) for name in contexts)
        or any(map(_layer_inserts, step.use))
    )


def _layer_inserts(layer: Any) -> bool:
    """Whether a middleware may insert units; flowdeco's own declare it, the code of others shows it."""
    declared = getattr(layer, "inserts", None)
    return _passes_or_uses(layer, None) if declared is None else bool(declared)


def _passes_or_uses(function: Any, parameter: str | None) -> bool:
    """Whether a function may insert by a parameter, None for its first one."""
    found = function_run(function)
    if found is None:
        return True
    uses = attribute_uses(found[0].__code__, found[1] if parameter is None else parameter)
    return uses is None or any(name in _INSERTING for _, name in uses)
