"""Stand-ins for definitions that are not here: of another process, of a journal, or of a run that was pickled.

They have the names, and as far as they are known the tags, texts, options and structure of the originals, but no function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from flowdeco.errors import UnreferencedError
from flowdeco.model.definitions import Action, ActionOptions, Stage, Stream, Unit, action_options, bound_of, options_of
from flowdeco.model.references import can_pickle
from flowdeco.model.units import Composite

__all__ = ["Missing", "missing_action", "outline", "portable"]


class Missing:
    """Stands for a function that is not here, and says so when it is called; it may have the name of that function."""

    def __init__(self, what: str, function: Any = None) -> None:
        self.what = what
        for name in ("__module__", "__qualname__", "__name__"):
            found: Any = getattr(function, name, None)
            if isinstance(found, str):
                setattr(self, name, found)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        place = ":".join(vars(self)[name] for name in ("__module__", "__qualname__") if name in vars(self))
        if place:
            reason = (
                f"{place}, or a value in it, could not be pickled: move it to module level, or run the pipeline again"
            )
        else:
            reason = "only its name is known here: run or resume the pipeline itself"
        raise UnreferencedError(f"{self.what} is a stand-in without a function: {reason}")

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if isinstance(other, Missing) else NotImplemented

    def __hash__(self) -> int:
        return hash((Missing, self.what))

    def __repr__(self) -> str:
        return f"<the missing function of {self.what}>"


def missing_action(name: str) -> Action[..., Any]:
    """Return the stand-in for an action of which only the name is known."""
    return Action(Missing(f"action {name!r}"), ActionOptions(name, ""))


def outline(unit: Unit | Stream) -> Stage:
    """Return a stand-in for a unit, with its name and tags but no actions."""
    if isinstance(unit, Stage):
        return Stage(unit.name, title=unit.title, tags=unit.tags, description=unit.description)
    return Stage(unit.name, tags=getattr(unit, "tags", ()))


def portable(thing: Any, of: Callable[[Any], Any]) -> Any:
    """Return a unit or stream itself if it can be pickled, and otherwise a stand-in with those options that do.

    `of` returns the parts of the stand-in. Anything else is returned as it is.
    """
    if not isinstance(thing, (Unit, Stream)) or can_pickle(thing):
        return thing
    if isinstance(thing, Stream):
        return Stream(Missing(f"the {thing.name}", thing.source), ())
    if isinstance(thing, Action):
        made = cast("Action[..., Any]", thing)
        function = Missing(f"action {thing.name!r}", made.__wrapped__)
        given = action_options(made)._replace(description=made.description)
        return Action(function, ActionOptions(**_kept(given._asdict(), of)), _kept(bound_of(made), of))
    options: dict[str, Any] = _kept(options_of(thing), of)
    if isinstance(thing, Stage):
        return Stage(actions=list(map(of, thing.actions)), **options)
    group = cast("Composite", thing)
    return type(group)(map(of, group.units), **options)


def _kept(values: Mapping[str, Any], of: Callable[[Any], Any]) -> dict[str, Any]:
    parts = {name: of(value) if isinstance(value, Stream) else value for name, value in values.items()}
    return {name: value for name, value in parts.items() if can_pickle(value)}
