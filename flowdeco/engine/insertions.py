"""Insertions: refused if nothing supplies what they need."""

from __future__ import annotations

from itertools import islice

from flowdeco.engine.branch import Branch
from flowdeco.engine.missing import MOST_UNITS, explain_refusal
from flowdeco.engine.open_scopes import OpenScope
from flowdeco.errors import WiringError
from flowdeco.model.definitions import Action, Parallel, Stream, Unit
from flowdeco.model.wiring import Place, check_inserted, hides_gaps, unmet

__all__ = ["check_insertion"]


def check_insertion(branch: Branch, units: tuple[Unit | Stream, ...], *, is_action: bool = False) -> None:
    """Refuse units that need a key that certainly nothing supplies; where middleware may supply it, that is not certain."""
    terms, scope = branch.terms, branch.scope
    if not unmet(units, branch.store, terms.skip) or _is_wrapped(branch):
        return
    if not is_action:
        coming = [(unit, True) for unit in units]
    else:
        coming = [(unit, True) for unit in units if type(unit) is Action]
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


def _is_wrapped(branch: Branch) -> bool:
    scope: OpenScope | None = branch.scope
    while scope is not None:
        layers = () if scope.layers is None else scope.layers.layers
        if hides_gaps(layers + scope.use_stages + scope.use_actions) or scope.values:
            return True
        scope = scope.outer
    return False
