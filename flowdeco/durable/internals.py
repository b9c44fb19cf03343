"""Details of definitions that codecs need and the model has no public name for: all private accesses are here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from flowdeco.model.definitions import Action, Parallel, Pipeline, Stage
from flowdeco.model.references import Origin

__all__ = ["bound_values", "options_of", "origin_of"]


def origin_of(definition: Any) -> Origin | None:
    """Return the reference that an action or stage is loaded by; None if it has none."""
    origin = definition._self_origin if issubclass(type(definition), Action) else definition._origin
    return cast("Origin | None", origin)


def bound_values(action: Action[..., Any]) -> Mapping[str, Any]:
    """Return the values that `bind` has fixed."""
    return action._self_bound


def options_of(unit: Stage | Pipeline | Parallel) -> Mapping[str, Any]:
    """Return the options that, with its actions or units, make the unit."""
    return unit._options() if isinstance(unit, Stage) else unit._options
