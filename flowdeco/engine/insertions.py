"""Insertions: refused if nothing supplies what they need."""

from __future__ import annotations

from itertools import islice

from flowdeco.engine.branch import Branch
from flowdeco.engine.missing import MOST_UNITS, explain_refusal
from flowdeco.engine.open_scopes import OpenScope
from flowdeco.errors import WiringError
from flowdeco.model.definitions import Action, Parallel, Stream, Unit
from flowdeco.model.options import Middleware
from flowdeco.model.wiring import Place, check_inserted, hides_gaps, may_write, unmet

__all__ = ["check_insertion"]


def check_insertion(branch: Branch, units: tuple[Unit | Stream, ...], *, is_action: bool = False) -> None:
    """Refuse units that need a key that certainly nothing supplies; where middleware may supply it, that is not certain.

    Actions run inside the middleware of their stage; units that are not actions run when it has ended.
    """
    terms, scope = branch.terms, branch.scope
    if not unmet(units, branch.store, terms.skip):
        return
    is_wrapped = _is_wrapped(scope)
    if is_wrapped and not (is_action and not may_write(_layers(scope)) and not _is_wrapped(scope.outer)):
        return
    if not is_action:
        coming = [(unit, True) for unit in units]
    else:
        coming = [(unit, not is_wrapped) for unit in units if type(unit) is Action]
        coming += [(step.action, False) for step, _ in reversed(branch.agenda[scope.depth + 1 :])]
        coming += [(unit, False) for unit, _ in scope.inserted]
        coming += [(unit, True) for unit in units if type(unit) is not Action]
    place = Place(scope.unit if is_action else None, islice(branch.upcoming(), MOST_UNITS), _groups(branch))
    try:
        check_inserted(coming, branch.store, terms.skip, place)
    except WiringError as error:
        explain_refusal(error, branch)
        raise


def _groups(branch: Branch | None) -> tuple[tuple[Parallel, int], ...]:
    """Return the groups around a branch, innermost first, each with the place of the branch."""
    found: list[tuple[Parallel, int]] = []
    while branch is not None and branch.parent is not None:
        found.append((branch.conductor.group, branch.index))
        branch = branch.parent
    return tuple(found)


def _is_wrapped(scope: OpenScope | None) -> bool:
    """Whether something around the contents of a scope may supply values to them, or recover from missing ones."""
    while scope is not None:
        if hides_gaps(_layers(scope)) or scope.values:
            return True
        scope = scope.outer
    return False


def _layers(scope: OpenScope) -> tuple[Middleware, ...]:
    own = () if scope.layers is None else scope.layers.layers
    return own + scope.use_stages + scope.use_actions
