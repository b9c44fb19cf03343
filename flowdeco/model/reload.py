"""The current version of a definition: in a notebook, a function or template is fixed by running its cell again.

A run in memory holds the objects that its actions inserted. A resumed run adopts the objects that have their names now,
as a run read from a journal does.
"""

from __future__ import annotations

from typing import Any

from flowdeco.model.definitions import Action, Stage, options_of
from flowdeco.model.references import Bound, Called, Changed, Imported, Member, Method, Narrowed, origin_of

__all__ = ["reloaded"]


def reloaded(unit: Any) -> Any:
    """Return the stage or action that has the same names now; the unit itself if there is no other."""
    origin = origin_of(unit)
    match origin:
        case Called(template, args, kwargs):
            found = _found(template.__module__, template.__qualname__, template)
            return unit if found is template else found(*args, **kwargs)
        case Imported(module, qualname):
            return _found(module, qualname, unit)
        case Member(stage, position):
            return _member(unit, stage, position)
        case Changed(base) | Bound(base) | Method(base) | Narrowed(base):
            found = reloaded(base)
            return unit if found is base else origin._replace(base=found).load()
        case _:
            return _action(unit) if type(unit) is Action else _stage(unit)


def _action(action: Any) -> Any:
    function = action.__wrapped__
    found = _found(getattr(function, "__module__", None), getattr(function, "__qualname__", ""), action)
    return found if found.name == action.name and found.__wrapped__ is not function else action


def _stage(stage: Any) -> Any:
    actions = [reloaded(action) for action in stage.actions]
    same = all(new is old for new, old in zip(actions, stage.actions, strict=True))
    return stage if same else Stage(actions=actions, **options_of(stage))


def _member(action: Any, stage: Imported | Called, position: int) -> Any:
    if isinstance(stage, Imported):
        return action  # it is declared with its stage, which is reloaded itself
    template = stage.template
    found = _found(template.__module__, template.__qualname__, template)
    return action if found is template else Member(stage._replace(template=found), position).load()


def _found(module: str | None, qualname: str, old: Any) -> Any:
    """Return the object that has this name now, if it is of the same kind."""
    try:
        found = Imported(str(module), qualname).load()
    except (ImportError, AttributeError, KeyError):
        return old
    return found if type(found) is type(old) and found.name == old.name else old
